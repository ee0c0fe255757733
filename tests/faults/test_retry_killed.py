"""A retry whose process is killed at any point is a run like any other: nothing of it stays, and it can go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bench import SETUPS, Bench, Setup
from fork_server import ForkServer

from orchestrator.actions.catalog import catalog
from orchestrator.clock import SystemClock
from orchestrator.ledger.ids import new_run_id
from orchestrator.ledger.lease import FINAL
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.states import RunState, StepState
from orchestrator.ledger.types import LeaseFilter
from orchestrator.workflow.loader import load_text

FLOW = """
version: 1
name: retry_crash
agent: tester
steps:
  first:
    action: exec
    with: { command: [/bin/sh, -c, "echo first >> __MARKS__"], paths: { write: [__FOLDER__] } }
  read:
    needs: [first]
    action: postgres.query
    grants: { db: { kind: database, connection: support, role: feedback-read } }
    with: { sql: SELECT 7 AS id }
    outputs: [rows]
  work:
    action: exec
    grants: { db: { kind: database, connection: support, role: feedback-read } }
    with:
      command: [/bin/sh, -c, "echo work ${{ steps.read.output.rows[0].id }} >> __MARKS__; test -e __OK__"]
      paths: { write: [__FOLDER__] }
  last:
    needs: [work]
    action: exec
    with: { command: [/bin/sh, -c, "echo last >> __MARKS__"], paths: { write: [__FOLDER__] } }
"""


class Failed:
    """A run that has failed, and the processes that retry it."""

    def __init__(self, bench: Bench, setup: Setup, folder: Path, children: ForkServer) -> None:
        self.bench, self.setup, self.children = bench, setup, children
        self.marks, self.ok = folder / "marks", folder / "ok"
        text = FLOW.replace("__MARKS__", str(self.marks)).replace("__OK__", str(self.ok))
        self.text = text.replace("__FOLDER__", str(folder))
        bench.install(load_text(self.text, filename="retry.yaml", actions=catalog).workflow)
        self.run_id, self.retry_id = new_run_id(), new_run_id()
        assert self.child("run", run=self.run_id) == 4
        self.ok.touch()

    def child(self, do: str, **more: Any) -> int:
        """How the child ended; -9 is the kill that was asked for."""
        given = {
            "vault": self.bench.info.vault_address,
            "role_id": self.bench.provisioned.role_id,
            "secret_id": self.bench.provisioned.secret_id.reveal(),
            "ledger": self.setup.ledger_url,
            "endpoints": self.bench.info.endpoints,
            "issuer": self.bench.info.issuer_url,
            "workflow": self.text,
            "run": self.retry_id,
            "of": self.run_id,
            "do": do,
            **more,
        }
        return self.children.run(given)


@pytest.fixture
def failed(bench: Bench, setup: Setup, tmp_path: Path, children: ForkServer) -> Failed:
    return Failed(bench, setup, tmp_path, children)


POINTS = [
    ("run.started", ""),
    ("attempt.started", ""),
    ("lease.requested", "database"),
    ("lease.issued", "step-token"),
    ("lease.issued", "database"),
    ("lease.revoking", "database"),
    ("lease.revoked", "database"),
    ("step.finished", ""),
    ("run.finished", ""),
]
EVERYWHERE = [("run.started", ""), ("lease.issued", "database")]
"""On PostgreSQL: what the others vary, it does not see."""

CRASHES = [
    pytest.param(setup, kind, grant_kind, when, id=f"{setup}-{kind}-{grant_kind or 'any'}-{when}")
    for setup in SETUPS
    for kind, grant_kind in (POINTS if setup == "sqlite" else EVERYWHERE)
    for when in ("before", "after")
]


@pytest.mark.parametrize(("setup", "kind", "grant_kind", "when"), CRASHES, indirect=["setup"])
def test_a_retry_that_was_killed_goes_on_and_repeats_nothing_that_it_took_over(
    failed: Failed, kind: str, grant_kind: str, when: str
) -> None:
    point = {"kind": kind, "grant_kind": grant_kind, "when": when, "count": 1}
    assert failed.child("retry", point=point) == -9
    assert failed.child("recover", later=True) == 0
    assert failed.bench.logins() == []
    assert failed.bench.sessions() == []
    assert failed.child("retry", later=True) == 0
    marks = failed.marks.read_text().split("\n")
    assert marks.count("first") == 1
    assert marks.count("last") in (1, 2), "a step may be repeated that nobody could record"
    assert set(marks) == {"first", "work 7", "last", ""}
    with open_ledger(failed.setup.ledger_url, clock=SystemClock()) as ledger:
        record = ledger.run(failed.retry_id)
        assert record is not None
        assert (record.state, record.retry_of, record.trigger) == (RunState.SUCCEEDED, failed.run_id, "retry")
        assert ledger.examine(failed.retry_id).whole
        assert ledger.examine(failed.run_id).whole
        steps = {each.step: each for each in ledger.steps(failed.retry_id)}
        assert (steps["read"].attempts, steps["read"].state) == (0, StepState.SUCCEEDED)
        assert {each.step for each in ledger.leases(LeaseFilter(run=failed.retry_id))} <= {"work", "last", "(run)"}
        assert {each.state for each in ledger.leases(LeaseFilter(run=failed.retry_id))} <= FINAL
