"""SIGINT and SIGTERM at random moments, from the first millisecond of a process on: a code, no traceback, nothing left.

ORCHESTRATOR_TEST_SIGNALS is how often each command is sent signals (default 4), ORCHESTRATOR_TEST_SEED makes the
moments those of an earlier time.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bench import ROOT, Bench, surroundings

from orchestrator.actions.catalog import catalog
from orchestrator.clock import SystemClock
from orchestrator.devstack.session import admin_environment, runtime_environment
from orchestrator.ledger.lease import OPEN
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.states import RunState
from orchestrator.ledger.types import LeaseFilter
from orchestrator.workflow.loader import load_text

ROUNDS = int(os.environ.get("ORCHESTRATOR_TEST_SIGNALS", "4"))
SEED = int(os.environ.get("ORCHESTRATOR_TEST_SEED", random.randrange(1_000_000)))
COMMAND = Path(sys.executable).with_name("orchestrator")
WORKFLOW = """
version: 1
name: signalled
agent: tester
context: { three: "${{ 1 + 2 }}" }
steps:
  one:
    action: postgres.query
    grants: { db: { kind: database, connection: support, role: feedback-read } }
    with: { sql: "SELECT pg_sleep(0.05)" }
  two:
    action: postgres.query
    grants: { db: { kind: database, connection: support, role: feedback-read } }
    with: { sql: "SELECT pg_sleep(0.05)" }
  three:
    action: postgres.query
    needs: [one, two]
    grants: { db: { kind: database, connection: support, role: feedback-read } }
    with: { sql: SELECT 1 }
"""
SAMPLE = str(ROOT / "workflows" / "customer_feedback.yaml")
INSTALLED = ("--workflows", str(ROOT / "workflows"), "--declarations", "DECLARATIONS")
COMMANDS = {
    "run": ("run", "WORKFLOW"),
    "run quietly": ("run", "--quiet", "WORKFLOW"),
    "run as json": ("run", "--json", "WORKFLOW"),
    "validate": ("validate", "WORKFLOW"),
    "plan": ("plan", "WORKFLOW"),
    "runs list": ("runs", "list"),
    "leases sweep": ("leases", "sweep"),
    "grants infer": ("grants", "infer", SAMPLE),
    "provision plan": ("provision", "plan", *INSTALLED),
    "provision apply": ("provision", "apply", *INSTALLED),
    "prove": ("prove", SAMPLE),
}
OURS = re.compile(r'File ".*/orchestrator/(?!(cli/)?__init__\.py|cli/entry\.py)[\w/]+\.py"')
"""A frame of ours in a traceback. What Python says of its own start, before our first line, is not ours to change."""


class Signalled:
    """Starts commands and sends them signals."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        bench.install(load_text(WORKFLOW, filename="test.yaml", actions=catalog).workflow)
        self.file = bench.directory / "signalled.yaml"
        self.file.write_text(WORKFLOW)
        self.environment = {
            **surroundings(),
            **admin_environment(bench.provisioned),
            "ORCHESTRATOR_POLICY": "allow-all",
            "ORCHESTRATOR_CATALOG_DATABASES__SUPPORT": bench.info.support_dsn.reveal(),
        }
        self.runtime = {**self.environment, **runtime_environment(bench.provisioned, bench.directory)}

    def start(self, name: str) -> subprocess.Popen[str]:
        words = {"WORKFLOW": str(self.file), "DECLARATIONS": str(self.bench.declarations)}
        arguments = [words.get(word, word) for word in COMMANDS[name]]
        admin = name.startswith(("provision", "grants"))
        return subprocess.Popen(
            [COMMAND, *arguments],
            env=self.environment if admin else self.runtime,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.bench.directory,
        )

    def assert_all_ended(self) -> None:
        with open_ledger(self.bench.config().ledger_url, clock=SystemClock()) as ledger:
            for run in ledger.runs(limit=1000):
                assert run.state is not RunState.RUNNING, run
                assert ledger.verify(run.run_id) is None
            assert ledger.leases(LeaseFilter(states=OPEN)) == []
        self.bench.assert_nothing_left()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_signal_at_any_moment_ends_a_command_with_its_code_and_nothing_left(bench: Bench, name: str) -> None:
    signalled = Signalled(bench)
    began = time.monotonic()
    process = signalled.start(name)
    _, said = process.communicate(timeout=60)
    lasts = time.monotonic() - began
    undisturbed = process.returncode
    assert undisturbed == 0, said
    moments = random.Random(f"{SEED} {name}")
    for turn in range(ROUNDS):
        number, code = ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129))[turn % 3]
        process = signalled.start(name)
        after = moments.uniform(0, lasts) if moments.random() < 0.8 else moments.uniform(0, 0.05)
        time.sleep(after)
        process.send_signal(number)
        if moments.random() < 0.3:
            time.sleep(moments.uniform(0, 0.1))
            process.send_signal(number)
        _, said = process.communicate(timeout=60)
        about = f"seed {SEED}, {number.name} after {after:.3f}s of {lasts:.3f}s: exit code {process.returncode}\n{said}"
        assert not OURS.search(said), about
        python_began = "Traceback" in said or "Fatal Python error" in said
        assert process.returncode in (0, code, -number) or python_began, about
        assert not python_began or after < lasts / 2, about
        signalled.assert_all_ended()
