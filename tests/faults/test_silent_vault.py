"""A signal while Vault does not answer: the process ends within its grace, and says what it could not confirm."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from bench import Bench
from waiting import wait_for

from orchestrator.actions.catalog import catalog
from orchestrator.clock import SystemClock
from orchestrator.devstack.stack import DevStack
from orchestrator.ledger.lease import FINAL, LeaseState
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.types import LeaseFilter
from orchestrator.workflow.loader import load_text

WORKFLOW = """
version: 1
name: silent
agent: tester
steps:
  slow:
    action: postgres.query
    grants:
      db: { kind: database, connection: support, role: ROLE }
    with: { sql: SELECT pg_sleep(100) }
    timeout: 100s
"""
SLEEPING = "SELECT pid FROM pg_stat_activity WHERE usename LIKE 'orc\\_%' AND wait_event = 'PgSleep'"
WAITING = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"


class Terminal:
    """What a person at a terminal does, on a stack whose servers may be stopped."""

    def __init__(self, bench: Bench, role: str) -> None:
        text = WORKFLOW.replace("ROLE", role)
        bench.install(load_text(text, filename="silent.yaml", actions=catalog).workflow)
        self.bench = bench
        self.file = bench.directory / "silent.yaml"
        self.file.write_text(text)
        self.environment = {
            **bench.environment(),
            "ORCHESTRATOR_POLICY": "allow-all",
            "ORCHESTRATOR_SETTLE": "0.5",
        }

    def command(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "orchestrator.cli", *words],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def interrupt_twice(self, process: subprocess.Popen[str]) -> str:
        """Ctrl-C, and Ctrl-C again; returns what the process said. Within a minute: a request may take 100 s."""
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
        return said

    def sweep_to_the_end(self) -> None:
        """Sweep until everything is gone. What the last one said is shown where that takes too long."""
        said = ""

        def swept() -> bool:
            nonlocal said
            process = self.command("leases", "sweep")
            said, _ = process.communicate(timeout=60)
            return process.returncode == 0

        try:
            wait_for(swept, "the sweep to close it")
        except AssertionError as error:
            raise AssertionError(f"{error}:\n{said}") from error

    def states(self) -> set[LeaseState]:
        with open_ledger(f"sqlite:///{self.bench.directory / 'ledger.db'}", clock=SystemClock()) as ledger:
            return {lease.state for lease in ledger.leases(LeaseFilter()) if "sweep" not in lease.resource}


def test_a_second_signal_in_the_middle_of_a_step_ends_the_process_within_its_grace(
    own_bench: tuple[DevStack, Bench],
) -> None:
    servers, bench = own_bench
    terminal = Terminal(bench, "feedback-read")
    process = terminal.command("run", str(terminal.file), "--grace", "2")
    wait_for(lambda: bench.sql(SLEEPING), "the step to query")
    os.kill(servers.openbao.pid, signal.SIGSTOP)
    try:
        said = terminal.interrupt_twice(process)
    finally:
        os.kill(servers.openbao.pid, signal.SIGCONT)
    assert process.returncode == 130
    assert "credentials are not confirmed gone yet" in said
    assert said.count(" slow.db ") == said.count(" slow.(step token) ") == 1
    assert "orchestrator leases sweep" in said
    assert terminal.states() == {LeaseState.REVOKING}
    terminal.sweep_to_the_end()
    assert terminal.states() <= FINAL
    bench.assert_nothing_left()


def test_a_second_signal_in_the_middle_of_an_issuance_ends_the_process_within_its_grace(
    own_bench: tuple[DevStack, Bench],
) -> None:
    servers, bench = own_bench
    like = bench.vault.read("database/roles/feedback-read")["data"]
    allowed = bench.vault.read("database/config/support")["data"]["allowed_roles"]
    bench.vault.write("database/config/support", allowed_roles=[*allowed, "held-role"])
    statements = [*like["creation_statements"], "SELECT pg_advisory_xact_lock(4711)"]
    bench.vault.write_data("database/roles/held-role", data={**like, "creation_statements": statements})
    terminal = Terminal(bench, "held-role")
    with psycopg.connect(bench.info.support_dsn.reveal()) as holder:
        holder.execute("SELECT pg_advisory_xact_lock(4711)")
        process = terminal.command("run", str(terminal.file), "--grace", "2")
        wait_for(lambda: bench.sql(WAITING), "Vault to create the login")
        os.kill(servers.openbao.pid, signal.SIGSTOP)
        try:
            said = terminal.interrupt_twice(process)
        finally:
            os.kill(servers.openbao.pid, signal.SIGCONT)
    assert process.returncode == 130
    assert "not confirmed gone yet" in said
    assert LeaseState.REVOKING in terminal.states()
    terminal.sweep_to_the_end()
    assert terminal.states() <= FINAL
    assert bench.logins() == []


@pytest.mark.parametrize(
    "words", [["run", "FILE"], ["runs", "resume", "RUN"], ["serve"], ["worker"], ["prove", "FILE"]], ids=" ".join
)
def test_every_command_that_revokes_takes_a_grace_and_refuses_none_at_all(words: list[str], tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from orchestrator.cli.main import command_line

    refused = CliRunner().invoke(command_line(), [*words, "--grace", "0"])
    assert refused.exit_code == 2
    assert "--grace" in refused.output
