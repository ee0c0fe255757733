"""Ledgers to export that no server is needed for, and what an export says, read as others would read it."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.main import main
from orchestrator.clock import SystemClock
from orchestrator.ledger.events import (
    Decided,
    LeaseIssued,
    LeaseRequested,
    LeaseRevoked,
    LeaseRevoking,
    RunFinished,
    RunStarted,
    StepFinished,
)
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.states import RunState, StepState
from orchestrator.ledger.task_events import TaskCalled, TaskOpened
from orchestrator.ledger.types import CallLimits

Export = Callable[..., str]
"""The text of an export, with these words, of the ledger at a URL; it ends with `code`."""

BEGUN = datetime(2026, 6, 1, 12, tzinfo=UTC)
LIFE = 4
"""So many events a lease has in these ledgers."""


class Ticking(SystemClock):
    """Each look is a second later."""

    def __init__(self) -> None:
        self.seen = BEGUN

    def now(self) -> datetime:
        self.seen += timedelta(seconds=1)
        return self.seen


def life(lease_id: str, subject: str, resource: str = "database/creds/x") -> Iterator[Any]:
    """One lease from its request to its end."""
    yield LeaseRequested(
        lease_id=lease_id,
        step="s",
        attempt=1,
        grant="db",
        grant_kind="database",
        resource=resource,
        scope={"name": "db", "kind": "database", "resource": resource, "ttl": 60},
        ttl=60,
    )
    yield LeaseIssued(lease_id=lease_id, ttl=60, expires_at=BEGUN, subject=subject, vault_lease_id=f"{resource}/v")
    yield LeaseRevoking(lease_id=lease_id, reason="step ended")
    yield LeaseRevoked(lease_id=lease_id, confirmed_by="database")


async def ledger_of(url: str, runs: int, leases: int, *, open_one: bool = False) -> str:
    """A ledger of runs `run_000000` and on with so many leases each; the last is still open with `open_one`."""
    with open_ledger(url, clock=Ticking()) as ledger:
        for number in range(runs):
            run = f"run_{number:06d}"
            started = RunStarted(
                workflow="even" if number % 2 == 0 else "odd",
                digest="sha256:0",
                agent=f"agent-{number % 3}",
                trigger="manual",
                inputs={"customer": "Ada of Nowhere"},
                steps=("s",),
            )
            fence = await ledger.begin_run(run, started)
            for first in range(0, leases, 500):
                some = range(first, min(first + 500, leases))
                events = [
                    event
                    for n in some
                    for event in life(
                        f"lease_{number:06d}{n:06d}", f"orc_{number}_{n}", "kv/a" if n % 2 else "database/creds/x"
                    )
                ]
                await ledger.append(run, fence, events)
            if not (open_one and number == runs - 1):
                await ledger.append(run, fence, [RunFinished(state=RunState.SUCCEEDED, exit_code=0)])
            else:
                await ledger.append(run, fence, list(life(f"lease_open{number}", "orc_open"))[:2])
    return url


async def with_tasks(url: str) -> str:
    """A run, a task with one call, a sweep that has ended, and a run, in this order; the first ends last."""
    start = {"digest": "sha256:0", "inputs": {}, "steps": ("s",)}
    with open_ledger(url, clock=Ticking()) as ledger:
        first = await ledger.begin_run("run_a", RunStarted(workflow="w", agent="a", trigger="manual", **start))  # type: ignore[arg-type]
        opened = TaskOpened(
            task="task_b",
            workflow="inbox",
            digest="sha256:0",
            agent="desk",
            inputs={},
            context={},
            tools=("s",),
            deadline=BEGUN + timedelta(days=1),
            idle=None,
            caller={},
        )
        await ledger.begin_run("task_b", opened)
        called = TaskCalled(call="run_c", tool="s", arguments_digest="sha256:0")
        call = RunStarted(workflow="inbox", agent="desk", trigger="call", task="task_b", **start)  # type: ignore[arg-type]
        await ledger.begin_call(called, "task_b", call, CallLimits(), "runner")
        sweep = RunStarted(workflow="(sweep)", agent="orchestrator", trigger="sweep", **start)  # type: ignore[arg-type]
        fence = await ledger.begin_run("run_d", sweep)
        await ledger.append("run_d", fence, [RunFinished(state=RunState.SUCCEEDED, exit_code=0)])
        await ledger.begin_run("run_e", RunStarted(workflow="w", agent="a", trigger="manual", **start))  # type: ignore[arg-type]
        await ledger.append("run_a", first, [RunFinished(state=RunState.SUCCEEDED, exit_code=0)])
    return url


PERSON = "Ada Lovelace of Nowhere"
GIVEN = "what a step gave of somebody"


async def with_values(url: str) -> str:
    """A run `run_a` that was given something, and gave something, and ended; and a run `run_b` that goes on."""
    with open_ledger(url, clock=Ticking()) as ledger:
        for run in ("run_a", "run_b"):
            inputs = {"who": PERSON}
            start = RunStarted(
                workflow="w", digest="sha256:0", agent="a", trigger="manual", inputs=inputs, steps=("s",)
            )
            fence = await ledger.begin_run(run, start)
            question = {"inputs": inputs}
            decided = Decided(
                step="s",
                attempt=1,
                engine="rego",
                revision="1",
                input_digest="5" * 64,
                allow=True,
                reasons=(),
                input=question,
            )
            given = StepFinished(step="s", state=StepState.SUCCEEDED, outputs={"rows": [GIVEN]})
            await ledger.append(run, fence, [decided, given])
            if run == "run_a":
                await ledger.append(run, fence, [RunFinished(state=RunState.SUCCEEDED, exit_code=0)])
    return url


def exporter(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Export:
    """Exports in this process."""

    def run(url: str, *words: str, code: int = 0) -> str:
        with monkeypatch.context() as patch:
            patch.setenv("ORCHESTRATOR_LEDGER_URL", url)
            assert main(["history", "export", *words]) == code
        return capsys.readouterr().out

    return run


def stored(path: Path, what: str, where: str = "1 = 1") -> list[tuple[Any, ...]]:
    """What the tables of an SQLite ledger say."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(f"SELECT {what} FROM {where}").fetchall()


def lines(text: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The lines of an export and the mark of its end, which is there."""
    *found, mark = (json.loads(line) for line in text.splitlines())
    assert mark["end"] is True
    assert all("end" not in line for line in found)
    return found, mark


def rows(text: str) -> tuple[list[dict[str, str]], dict[str, str]]:
    """The same of a CSV file."""
    read = list(csv.reader(io.StringIO(text, newline="")))
    header, *found, end = read
    assert {len(row) for row in read} == {len(header)}
    assert end[0] == "#end"
    mark = dict(part.split("=", 1) for part in end[1:] if part)
    return [dict(zip(header, row, strict=True)) for row in found], mark
