"""What the ledger promises, on both databases: durable, fenced, all or nothing, and found again."""

from __future__ import annotations

import asyncio
import random
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect, text

from orchestrator.errors import FenceLost, IllegalTransition, LedgerError, RunExists, UnknownRun, UsageError
from orchestrator.ledger.events import (
    AttemptFinished,
    AttemptStarted,
    Decided,
    Event,
    LeaseDenied,
    LeaseIssued,
    LeaseRequested,
    LeaseRevocationFailed,
    LeaseRevoked,
    LeaseRevoking,
    OrphansSwept,
    RunFinished,
    RunStarted,
    StepFinished,
)
from orchestrator.ledger.lease import LeaseState
from orchestrator.ledger.location import locate
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.states import IdKind, RunState, StepState
from orchestrator.ledger.storage import migrations
from orchestrator.ledger.storage.codec import event_from_json
from orchestrator.ledger.storage.connect import connect
from orchestrator.ledger.storage.indexes import INDEXES, metadata
from orchestrator.ledger.storage.schema import CURRENT, REVISIONS
from orchestrator.ledger.types import LeaseFilter, LedgerReader, LedgerWriter, RunFilter
from orchestrator.ledger.writing.committer import Committer
from orchestrator.ledger.writing.jobs import Append
from orchestrator.ledger.writing.store import Ledger
from orchestrator.ledger.writing.transaction import Entry

START = datetime(2026, 1, 31, 12, tzinfo=UTC)


class StandingClock:
    """A clock at which every look is at the same moment."""

    def now(self) -> datetime:
        return START


class SteppingClock:
    """A clock that is one second later at every look."""

    def __init__(self) -> None:
        self._seconds = 0

    def now(self) -> datetime:
        self._seconds += 1
        return START + timedelta(seconds=self._seconds)

    def monotonic(self) -> float:
        return float(self._seconds)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path, empty_ledger: Path) -> Iterator[str]:
    """The URL of a new, empty ledger."""
    if request.param == "sqlite":
        yield f"sqlite:///{shutil.copy(empty_ledger, tmp_path / 'ledger.db')}"
        return
    yield str(request.getfixturevalue("new_ledger"))


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    with open_ledger(url, clock=SteppingClock()) as opened:
        yield opened


def started(workflow: str = "feedback", agent: str = "ann") -> RunStarted:
    return RunStarted(
        workflow=workflow,
        digest="d1",
        agent=agent,
        trigger="manual",
        inputs={"since": "monday"},
        steps=("read", "write"),
    )


def attempt(step: str = "read", number: int = 1) -> AttemptStarted:
    return AttemptStarted(step=step, attempt=number, step_key=f"{step}-{number}", action="postgres.query", timeout=60)


def requested(
    lease_id: str, *, step: str = "read", kind: str = "database", resource: str = "support/t"
) -> LeaseRequested:
    return LeaseRequested(
        lease_id=lease_id,
        step=step,
        attempt=1,
        grant="g",
        grant_kind=kind,
        resource=resource,
        scope={"select": ["id"]},
        ttl=60,
    )


def issued(lease_id: str) -> LeaseIssued:
    return LeaseIssued(lease_id=lease_id, ttl=60, expires_at=START, vault_lease_id="database/creds/x", subject="orc_x")


def revoking(lease_id: str) -> LeaseRevoking:
    return LeaseRevoking(lease_id=lease_id, reason="step ended")


def revoked(lease_id: str) -> LeaseRevoked:
    return LeaseRevoked(lease_id=lease_id, confirmed_by="vault")


def rows(url: str, table: str) -> list[tuple[object, ...]]:
    engine = create_engine(locate(url).url)
    with engine.connect() as connection:
        found = [tuple(row) for row in connection.execute(text(f"SELECT * FROM {table} ORDER BY 1, 2"))]
    engine.dispose()
    return found


async def test_a_run_is_found_again_by_another_process(ledger: Ledger, url: str) -> None:
    fence = await ledger.begin_run("run_1", started())
    decided = Decided(
        step="read", attempt=1, engine="rego", revision="r", input_digest="i", allow=True, reasons=("ok",), max_ttl=30
    )
    await ledger.append("run_1", fence, [attempt(), decided])
    await ledger.append("run_1", fence, [requested("L1"), issued("L1")])
    await ledger.append("run_1", fence, [revoking("L1"), revoked("L1")])
    finished = AttemptFinished(step="read", attempt=1, state=StepState.SUCCEEDED)
    step = StepFinished(step="read", state=StepState.SUCCEEDED, outputs={"rows": [[1, "ä"]]})
    await ledger.append("run_1", fence, [finished, step, RunFinished(state=RunState.SUCCEEDED, exit_code=0)])

    with open_ledger(url, clock=SteppingClock()) as other:
        run = other.run("run_1")
        assert run is not None
        assert (run.workflow, run.agent, run.state, run.exit_code, run.fence) == ("feedback", "ann", "succeeded", 0, 1)
        assert run.inputs == {"since": "monday"}
        assert run.started_at == START + timedelta(seconds=1)
        (record,) = other.steps("run_1")
        assert (record.step, record.state, record.attempts) == ("read", StepState.SUCCEEDED, 1)
        assert record.outputs == {"rows": [[1, "ä"]]}
        lease = other.lease("L1")
        assert lease is not None
        assert (lease.state, lease.step_key, lease.subject) == (LeaseState.REVOKED, "read-1", "orc_x")
        assert (lease.expires_at, lease.closed_at) == (START, START + timedelta(seconds=7))
        kinds = [event.kind for event in other.events("run_1")]
        assert kinds == [
            *("run.started", "attempt.started", "decision", "lease.requested", "lease.issued"),
            *("lease.revoking", "lease.revoked", "attempt.finished", "step.finished", "run.finished"),
        ]
        assert [event.seq for event in other.events("run_1", lease_id="L1")] == [4, 5, 6, 7]
        third = other.events("run_1")[2]
        assert event_from_json(third.kind, third.data) == decided
        assert other.verify("run_1") is None


async def test_the_ledger_is_what_its_protocols_ask_for(ledger: Ledger) -> None:
    writer: LedgerWriter = ledger
    reader: LedgerReader = ledger
    assert await writer.begin_run("run_1", started()) == 1
    assert reader.run("run_1") is not None


async def test_a_run_id_is_taken_once(ledger: Ledger) -> None:
    await ledger.begin_run("run_1", started())
    with pytest.raises(UsageError, match="run_1 is in the ledger already"):
        await ledger.begin_run("run_1", started("other"))
    run = ledger.run("run_1")
    assert run is not None
    assert run.workflow == "feedback"
    assert len(ledger.events("run_1")) == 1


async def test_who_is_taken_over_cannot_write_any_more(ledger: Ledger, url: str) -> None:
    old = await ledger.begin_run("run_1", started())
    await ledger.append("run_1", old, [attempt()])
    with open_ledger(url, clock=SteppingClock()) as other:
        new = await other.take_over("run_1")
        assert new == old + 1
        with pytest.raises(FenceLost, match="taken over"):
            await ledger.append("run_1", old, [requested("L1")])
        await other.append("run_1", new, [requested("L2")])
        with pytest.raises(FenceLost):
            await ledger.append("run_1", old, [requested("L3")])
        with pytest.raises(FenceLost):
            await other.append("run_1", old, [requested("L4")])
    assert [lease.lease_id for lease in ledger.leases(LeaseFilter())] == ["L2"]
    assert ledger.verify("run_1") is None


async def test_two_writers_with_the_same_fence_keep_one_chain(ledger: Ledger, url: str) -> None:
    fence = await ledger.begin_run("run_1", started())
    with open_ledger(url, clock=SteppingClock()) as other:
        await other.append("run_1", fence, [requested("L1")])
        await ledger.append("run_1", fence, [issued("L1"), requested("L2")])
        await other.append("run_1", fence, [revoking("L1"), issued("L2")])
        await ledger.append("run_1", fence, [revoked("L1")])
    assert ledger.verify("run_1") is None
    assert {lease.lease_id: lease.state for lease in ledger.leases(LeaseFilter())} == {"L1": "revoked", "L2": "issued"}


async def test_an_illegal_transition_records_nothing_of_its_append(ledger: Ledger) -> None:
    fence = await ledger.begin_run("run_1", started())
    await ledger.append("run_1", fence, [requested("L1")])
    with pytest.raises(IllegalTransition, match="L1"):
        await ledger.append("run_1", fence, [requested("L2"), revoked("L1")])
    assert ledger.lease("L2") is None
    assert len(ledger.events("run_1")) == 2
    await ledger.append("run_1", fence, [requested("L2")])
    assert ledger.verify("run_1") is None


async def test_a_lease_of_one_run_cannot_be_moved_or_taken_by_another(ledger: Ledger) -> None:
    for run in ("run_1", "run_2"):
        await ledger.begin_run(run, started())
    await ledger.append("run_1", 1, [requested("L1"), issued("L1")])
    with pytest.raises(IllegalTransition):
        await ledger.append("run_2", 1, [revoking("L1")])
    with pytest.raises(LedgerError, match="refused these events"):
        await ledger.append("run_2", 1, [requested("L1")])
    await ledger.append("run_2", 1, [requested("L2")])
    lease = ledger.lease("L1")
    assert lease is not None
    assert (lease.run_id, lease.state) == ("run_1", LeaseState.ISSUED)
    assert (ledger.verify("run_1"), ledger.verify("run_2")) == (None, None)


async def test_of_many_concurrent_appends_only_the_wrong_ones_fail(ledger: Ledger) -> None:
    runs = [f"run_{number}" for number in range(20)]
    await asyncio.gather(*(ledger.begin_run(run, started()) for run in runs))
    lost, illegal, taken = "run_3", "run_7", "run_11"
    await ledger.take_over(lost)
    await ledger.append("run_0", 1, [requested("taken")])

    def events(run: str) -> list[Event]:
        if run == illegal:
            return [issued("never requested")]
        return [requested("taken" if run == taken else f"lease of {run}")]

    results = await asyncio.gather(*(ledger.append(run, 1, events(run)) for run in runs), return_exceptions=True)
    failed = {run: type(result) for run, result in zip(runs, results, strict=True) if result is not None}
    assert failed == {lost: FenceLost, illegal: IllegalTransition, taken: LedgerError}
    leases = {lease.run_id for lease in ledger.leases(LeaseFilter()) if lease.lease_id != "taken"}
    assert leases == set(runs) - {lost, illegal, taken}
    assert all(ledger.verify(run) is None for run in runs)


async def test_in_one_batch_a_lost_fence_does_not_disturb_the_appends_around_it(ledger: Ledger, url: str) -> None:
    await ledger.begin_run("run_1", started())
    location = locate(url)
    engine = connect(location)
    committer = Committer(engine, location)

    def append(fence: int, event: Event) -> Append:
        return Append("run_1", fence, [Entry.of("2026-01-31T12:00:00.000000Z", event)])

    batch = [append(1, requested("L1")), append(9, requested("L2")), append(1, issued("L1")), append(1, revoking("L1"))]
    outcomes = committer.commit(batch)
    assert [type(outcome.error) for outcome in outcomes] == [type(None), FenceLost, type(None), type(None)]
    committer.close()
    engine.dispose()
    lease = ledger.lease("L1")
    assert lease is not None
    assert lease.state is LeaseState.REVOKING
    assert ledger.verify("run_1") is None


async def test_concurrent_appends_to_one_run_keep_their_order(ledger: Ledger) -> None:
    await ledger.begin_run("run_1", started())
    appends = [
        ledger.append("run_1", 1, [event]) for n in range(40) for event in (requested(f"L{n:02}"), issued(f"L{n:02}"))
    ]
    await asyncio.gather(*appends)
    sequence = [(event.kind, event.data["lease_id"]) for event in ledger.events("run_1")[1:]]
    assert sequence == [(kind, f"L{n:02}") for n in range(40) for kind in ("lease.requested", "lease.issued")]
    assert ledger.verify("run_1") is None


async def test_what_a_cancelled_caller_appended_is_whole_and_a_shielded_one_learns_it(ledger: Ledger) -> None:
    await ledger.begin_run("run_1", started())
    tasks = [asyncio.create_task(ledger.append("run_1", 1, [requested(f"L{n}"), issued(f"L{n}")])) for n in range(50)]
    waiting = [asyncio.create_task(shielded(task)) for task in tasks[:10]]
    await asyncio.sleep(0)
    for task in [*waiting, *tasks[10:]]:
        task.cancel()
    results = await asyncio.gather(*waiting, *tasks[10:], return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)
    assert await asyncio.gather(*tasks[:10]) == [None] * 10
    await ledger.append("run_1", 1, [requested("last")])
    found = ledger.leases(LeaseFilter())
    assert {lease.lease_id for lease in found} >= {f"L{n}" for n in range(10)} | {"last"}
    assert {lease.state for lease in found if lease.lease_id != "last"} == {LeaseState.ISSUED}
    assert ledger.verify("run_1") is None


async def shielded(task: asyncio.Task[None]) -> None:
    await asyncio.shield(task)


async def test_closing_finishes_what_was_given_and_then_takes_nothing(url: str) -> None:
    ledger = open_ledger(url, clock=SteppingClock())
    await ledger.begin_run("run_1", started())
    appends = [asyncio.create_task(ledger.append("run_1", 1, [requested(f"L{n}")])) for n in range(30)]
    await asyncio.sleep(0)
    await ledger.aclose()
    assert await asyncio.gather(*appends) == [None] * 30
    with pytest.raises(LedgerError, match="closed"):
        await ledger.append("run_1", 1, [requested("late")])
    await ledger.aclose()
    with open_ledger(url, clock=SteppingClock()) as again:
        assert len(again.leases(LeaseFilter())) == 30


async def test_an_append_to_a_run_that_is_not_there_is_refused(ledger: Ledger) -> None:
    with pytest.raises(UnknownRun, match="run_9"):
        await ledger.append("run_9", 1, [attempt()])
    with pytest.raises(UnknownRun, match="run_9"):
        await ledger.take_over("run_9")
    with pytest.raises(UnknownRun, match="run_9"):
        ledger.verify("run_9")
    assert (ledger.run("run_9"), ledger.lease("L9"), ledger.steps("run_9"), ledger.events("run_9")) == (
        None,
        None,
        [],
        [],
    )


async def test_an_append_without_events_only_checks_the_fence(ledger: Ledger) -> None:
    await ledger.begin_run("run_1", started())
    await ledger.append("run_1", 1, [])
    await ledger.take_over("run_1")
    with pytest.raises(FenceLost):
        await ledger.append("run_1", 1, [])
    assert len(ledger.events("run_1")) == 1


async def test_text_that_databases_refuse_is_recorded_all_the_same(ledger: Ledger) -> None:
    await ledger.begin_run("run_1", started())
    reason = "\0 \ud800 ✓"
    await ledger.append("run_1", 1, [requested("L1"), LeaseDenied(lease_id="L1", reason=reason)])
    lease = ledger.lease("L1")
    assert lease is not None
    assert lease.reason == "\N{REPLACEMENT CHARACTER} ? ✓"
    assert ledger.events("run_1", lease_id="L1")[1].data["reason"] == reason
    assert ledger.verify("run_1") is None


async def lively(ledger: Ledger) -> None:
    """Three runs with leases in every sort of state, some failures and retries."""
    dice = random.Random(7)
    for run in ("run_1", "run_2", "run_3"):
        fence = await ledger.begin_run(run, started(workflow=f"flow_{run}"))
        for number in range(12):
            step, lease = dice.choice(["read", "write", "undeclared"]), f"{run}-{number}"
            life: Sequence[Event] = [
                requested(lease, step=step),
                issued(lease),
                revoking(lease),
                LeaseRevocationFailed(lease_id=lease, error="sealed"),
                revoked(lease),
            ][: dice.randint(1, 5)]
            await ledger.append(run, fence, [attempt(step, number + 1), *life])
            if dice.random() < 0.5:
                await ledger.append(
                    run, fence, [AttemptFinished(step=step, attempt=1, state=StepState.FAILED, reason="no")]
                )
        swept = OrphansSwept(step_key="read-1", connection="support", roles=("orc_1",))
        await ledger.append(run, fence, [StepFinished(step="read", state=StepState.FAILED, outputs=[1]), swept])
    await ledger.take_over("run_2")
    await ledger.append("run_3", 1, [RunFinished(state=RunState.FAILED, exit_code=4, reason="read failed")])


async def test_rebuilding_from_the_events_gives_the_same_tables(ledger: Ledger, url: str) -> None:
    await lively(ledger)
    before = {table: rows(url, table) for table in ("run", "step", "lease")}
    engine = connect(locate(url))
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM lease WHERE run_id = 'run_1'"))
        connection.execute(text("UPDATE step SET state = 'succeeded', attempts = 99"))
        connection.execute(text("UPDATE lease SET state = 'revoked', reason = 'nothing to see here'"))
        connection.execute(text("UPDATE run SET state = 'succeeded', exit_code = 0, agent = 'nobody'"))
    engine.dispose()
    assert rows(url, "lease") != before["lease"]
    for run in ("run_1", "run_2", "run_3"):
        ledger.rebuild(run)
    assert {table: rows(url, table) for table in ("run", "step", "lease")} == before
    await ledger.append("run_1", 1, [requested("after")])
    with pytest.raises(UnknownRun):
        ledger.rebuild("run_9")


async def test_steps_come_in_the_order_in_which_the_run_declared_them(ledger: Ledger) -> None:
    await ledger.begin_run("run_1", started())
    await ledger.append("run_1", 1, [attempt("write"), attempt("read"), attempt("also")])
    assert [step.step for step in ledger.steps("run_1")] == ["read", "write", "also"]


async def test_runs_are_listed_newest_first_and_by_workflow_and_state(ledger: Ledger) -> None:
    for number in range(4):
        await ledger.begin_run(f"run_{number}", started("odd" if number % 2 else "even"))
    await ledger.append("run_1", 1, [RunFinished(state=RunState.FAILED, exit_code=4)])
    assert [run.run_id for run in ledger.runs()] == ["run_3", "run_2", "run_1", "run_0"]
    assert [run.run_id for run in ledger.runs(limit=1)] == ["run_3"]
    assert [run.run_id for run in ledger.runs(workflow="odd")] == ["run_3", "run_1"]
    assert [run.run_id for run in ledger.runs(workflow="odd", state=RunState.RUNNING)] == ["run_3"]


FILTERS = [
    (LeaseFilter(), ["L4", "L3", "L2", "L1"]),
    (LeaseFilter(limit=2), ["L4", "L3"]),
    (LeaseFilter(run="run_1"), ["L2", "L1"]),
    (LeaseFilter(workflow="flow_2"), ["L4", "L3"]),
    (LeaseFilter(step="write"), ["L4", "L2"]),
    (LeaseFilter(agent="bob"), ["L4", "L3"]),
    (LeaseFilter(grant_kind="token"), ["L3"]),
    (LeaseFilter(states=frozenset({LeaseState.ISSUED, LeaseState.REVOKING})), ["L4", "L2"]),
    (LeaseFilter(states=frozenset()), []),
    (LeaseFilter(resource="support/"), ["L3", "L2", "L1"]),
    (LeaseFilter(resource="support/t_"), ["L2"]),
    (LeaseFilter(resource="Support"), []),
    (LeaseFilter(agent="bob", step="write", states=frozenset({LeaseState.ISSUED})), ["L4"]),
    (LeaseFilter(agent="ann", step="write", grant_kind="token"), []),
    (LeaseFilter(since=START + timedelta(seconds=4)), ["L4", "L3", "L2"]),
    (LeaseFilter(until=START + timedelta(seconds=4)), ["L1"]),
]


@pytest.mark.parametrize(("wanted", "found"), FILTERS)
async def test_leases_are_found_by_every_filter_newest_first(
    ledger: Ledger, wanted: LeaseFilter, found: list[str]
) -> None:
    await ledger.begin_run("run_1", started("flow_1"))
    await ledger.begin_run("run_2", started("flow_2", agent="bob"))
    await ledger.append("run_1", 1, [requested("L1", resource="support/t")])
    await ledger.append(
        "run_1", 1, [requested("L2", step="write", resource="support/t_x"), issued("L2"), revoking("L2")]
    )
    await ledger.append("run_2", 1, [requested("L3", kind="token", resource="support/tax")])
    await ledger.append("run_2", 1, [requested("L4", step="write", resource="mail/s"), issued("L4")])
    assert [lease.lease_id for lease in ledger.leases(wanted)] == found


async def test_ids_are_found_by_their_beginning_each_kind_for_itself(ledger: Ledger) -> None:
    for run_id in ("run_01A", "run_01B", "run_02A"):
        await ledger.begin_run(run_id, started())
    await ledger.append("run_01A", 1, [requested("lease_abcdef22"), requested("lease_abcdef33")])
    assert ledger.ids(IdKind.RUN, ["run_01"], 9) == ["run_01A", "run_01B"]
    assert ledger.ids(IdKind.RUN, ["run_02", "run_01B", "run_01B"], 9) == ["run_01B", "run_02A"]
    assert ledger.ids(IdKind.RUN, ["run_"], 2) == ["run_01A", "run_01B"]
    assert ledger.ids(IdKind.LEASE, ["lease_abc"], 9) == ["lease_abcdef22", "lease_abcdef33"]
    assert ledger.ids(IdKind.TASK, ["run_"], 9) == []
    assert ledger.ids(IdKind.RUN, ["run\\_", "run%", "_"], 9) == []
    assert ledger.lease("lease_abcdef2") is None, "who asks for a lease has its whole id"


async def test_a_run_and_what_is_said_with_its_beginning_are_recorded_together_or_not_at_all(ledger: Ledger) -> None:
    taken = StepFinished(step="read", state=StepState.SUCCEEDED, outputs={"n": 1}, taken_from="run_0")
    await ledger.begin_run("run_1", started(), [taken])
    assert [event.kind for event in ledger.events("run_1")] == ["run.started", "step.finished"]
    assert [(step.step, step.outputs) for step in ledger.steps("run_1")] == [("read", {"n": 1})]
    await ledger.append("run_1", 1, [StepFinished(step="write", state=StepState.SUCCEEDED)])
    assert ledger.examine("run_1").whole
    with pytest.raises(IllegalTransition):
        await ledger.begin_run("run_2", started(), [taken, revoked("lease_1")])
    assert (ledger.run("run_2"), ledger.events("run_2"), ledger.steps("run_2")) == (None, [], [])


async def test_no_two_runs_go_on_from_one(ledger: Ledger) -> None:
    await ledger.begin_run("run_1", started())
    await ledger.begin_run("run_2", replace(started(), retry_of="run_1"))
    with pytest.raises(RunExists, match="run_1 has been retried"):
        await ledger.begin_run("run_3", replace(started(), retry_of="run_1"))
    await ledger.begin_run("run_4", replace(started(), retry_of="run_2"))
    assert ledger.run("run_3") is None
    assert ledger.retries(["run_1", "run_2", "run_4"]) == {"run_1": "run_2", "run_2": "run_4"}
    retry = ledger.retry_of("run_1")
    assert retry is not None
    assert (retry.run_id, retry.retry_of) == ("run_2", "run_1")
    assert ledger.retry_of("run_4") is None


async def test_a_list_goes_on_where_it_ended_whatever_begins_meanwhile(ledger: Ledger) -> None:
    for number in range(7):
        await ledger.begin_run(f"run_{number}", started())
    pages: list[list[str]] = []
    before = None
    while page := ledger.newest_runs(RunFilter(limit=3, before=before)):
        pages.append([run.run_id for run in page])
        before = page[-1]
        await ledger.begin_run(f"run_new_{len(pages)}", started())
    assert pages == [["run_6", "run_5", "run_4"], ["run_3", "run_2", "run_1"], ["run_0"]]


async def test_a_list_goes_on_among_runs_that_began_at_one_moment(url: str) -> None:
    with open_ledger(url, clock=StandingClock()) as ledger:
        for number in range(5):
            await ledger.begin_run(f"run_{number}", started())
        for query in (RunFilter(limit=2), RunFilter(limit=2, agent=started().agent)):
            first = ledger.newest_runs(query)
            second = ledger.newest_runs(replace(query, before=first[-1]))
            third = ledger.newest_runs(replace(query, before=second[-1]))
            listed = [run.run_id for run in (*first, *second, *third)]
            assert listed == ["run_4", "run_3", "run_2", "run_1", "run_0"]


async def test_runs_are_chosen_by_what_started_them_for_whom_and_when(ledger: Ledger) -> None:
    moments = []
    for number, (agent, trigger) in enumerate([("ann", "manual"), ("bob", "cron"), ("ann", "cron"), ("ann", "prove")]):
        await ledger.begin_run(f"run_{number}", replace(started(), agent=agent, trigger=trigger))
        record = ledger.run(f"run_{number}")
        assert record is not None
        moments.append(record.started_at)

    def listed(**wanted: Any) -> list[str]:
        return [run.run_id.removeprefix("run_") for run in ledger.newest_runs(RunFilter(**wanted))]

    assert listed() == ["2", "1", "0"], "a proof is no run of anybody's"
    assert listed(everything=True) == ["3", "2", "1", "0"]
    assert listed(trigger="prove") == ["3"]
    assert listed(trigger="cron") == ["2", "1"]
    assert listed(trigger="cron", agent="ann") == ["2"]
    assert listed(agent="ann") == ["2", "0"]
    assert listed(agent="ann", everything=True) == ["3", "2", "0"]
    assert listed(workflow=started().workflow, agent="bob") == ["1"]
    assert listed(workflow=started().workflow) == ["2", "1", "0"]
    assert listed(state=RunState.RUNNING, trigger="manual") == ["0"]
    assert listed(state=RunState.FAILED) == []
    assert listed(since=moments[1]) == ["2", "1"]
    assert listed(until=moments[1]) == ["0"]
    assert listed(since=moments[1], until=moments[2], agent="bob") == ["1"]
    assert listed(before=ledger.run("run_2"), until=moments[1]) == ["0"]
    assert listed(before=ledger.run("run_1"), until=moments[3]) == ["0"]
    assert list(ledger.workflows(9)) == [started().workflow]


async def test_events_cannot_be_changed_replaced_or_removed(ledger: Ledger, url: str) -> None:
    await ledger.begin_run("run_1", started())
    statements = [
        "UPDATE event SET data = '{}' WHERE seq = 1",
        "DELETE FROM event",
        "DELETE FROM run",
        "INSERT OR REPLACE INTO event VALUES ('run_1', 1, 't', 'k', '{}', 'd', NULL)"
        if "sqlite" in url
        else "TRUNCATE event",
    ]
    for statement in statements:
        engine = connect(locate(url))
        with pytest.raises(Exception, match=r"append-only|(?i:foreign key)"), engine.begin() as connection:
            connection.execute(text(statement))
        engine.dispose()
    assert ledger.verify("run_1") is None


async def test_a_broken_history_is_not_rebuilt_into_the_present(ledger: Ledger, url: str) -> None:
    await lively(ledger)
    engine = connect(locate(url))
    drop = "DROP TRIGGER event_refuses_update" if "sqlite" in url else "DROP TRIGGER event_refuses_change ON event"
    with engine.begin() as connection:
        connection.execute(text(drop))
        connection.execute(
            text("UPDATE event SET time = '2020-01-01T00:00:00.000000Z' WHERE run_id = 'run_1' AND seq = 5")
        )
    engine.dispose()
    assert ledger.verify("run_1") == 5
    with pytest.raises(LedgerError, match="broken at event 5"):
        ledger.rebuild("run_1")


@pytest.mark.parametrize(
    ("change", "broken", "read"),
    [
        ("", None, 0),
        ("UPDATE event SET time = '2020-01-01T00:00:00.000000Z' WHERE run_id = 'run_1' AND seq = 3", 3, 0),
        ("UPDATE event SET kind = 'lease.gone' WHERE run_id = 'run_1' AND seq = 2", 2, 0),
        ("UPDATE event SET seq = 0 WHERE run_id = 'run_1' AND seq = 2", 1, 1),
        ("UPDATE run SET seq = seq + 1 WHERE run_id = 'run_1'", -1, 0),
    ],
)
async def test_events_that_are_read_once_are_verified_as_those_that_are_read_twice(
    ledger: Ledger, url: str, change: str, broken: int | None, read: int
) -> None:
    await lively(ledger)
    many = len(ledger.events("run_1"))
    engine = connect(locate(url))
    drop = "DROP TRIGGER event_refuses_update" if "sqlite" in url else "DROP TRIGGER event_refuses_change ON event"
    with engine.begin() as connection:
        connection.execute(text(drop))
        if change:
            connection.execute(text(change))
    engine.dispose()
    broken = many + 1 if broken == -1 else broken
    events, found = ledger.verified("run_1")
    assert (found, len(events)) == (broken, many - read)
    assert list(events) == [event for event in ledger.events("run_1") if event.seq > 0]
    assert ledger.verify("run_1") == broken
    assert ledger.verified("run_1", many + 1) == (events, broken)
    assert ledger.verified("run_1", 2) == (events[: 2 - read], 1 if read else None), "a part is not called whole"


def test_the_migrations_make_the_tables_that_the_code_knows(ledger: Ledger, url: str) -> None:
    engine = connect(locate(url))
    with engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), metadata)
    engine.dispose()
    assert [entry for entry in differences if "alembic_version" not in str(entry)] == []


def test_the_revisions_that_the_code_knows_are_those_of_the_scripts() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    scripts = ScriptDirectory.from_config(config)
    assert tuple(script.revision for script in reversed(list(scripts.walk_revisions()))) == REVISIONS
    assert scripts.get_heads() == [CURRENT]


async def test_a_ledger_of_before_learns_what_its_events_say_of_the_leases_being_revoked(url: str) -> None:
    """An upgrade must not begin again with the first pause, nor touch the events."""
    with open_ledger(url, clock=SteppingClock()) as ledger:
        await ledger.begin_run("run_1", started())
        await ledger.append("run_1", 1, [requested("lease_1"), requested("lease_2"), issued("lease_1")])
        await ledger.append("run_1", 1, [LeaseRevoking(lease_id="lease_1", reason="step ended")])
        for _ in range(3):
            await ledger.append("run_1", 1, [LeaseRevocationFailed(lease_id="lease_1", error="no answer")])
        before = ledger.lease("lease_1")
    back_to_r0004(url)
    with open_ledger(url, clock=SteppingClock()) as ledger:
        assert ledger.lease("lease_1") == before
        untouched = ledger.lease("lease_2")
        assert untouched is not None
        assert (untouched.revoking_since, untouched.failed_tries) == (None, 0)
        assert ledger.verify("run_1") is None


async def test_a_ledger_of_before_gets_the_indexes_and_the_origins_of_its_leases(url: str) -> None:
    clock = SteppingClock()
    with open_ledger(url, clock=clock) as ledger:
        fresh = indexes_of(url)
        await ledger.begin_run("run_1", started())
        await ledger.append("run_1", 1, [requested("lease_1"), requested("lease_2", step="write", resource="mail/s")])
        await ledger.append("run_1", 1, [revoking("lease_1"), revoked("lease_1")])
    back_to_r0005(url)
    with open_ledger(url, clock=clock) as ledger:
        assert indexes_of(url) == fresh
        origin = ("feedback", "read", "ann", "database", "support/t")
        assert rows(url, "lease_origin") == [origin, ("feedback", "write", "ann", "database", "mail/s")]
        together = LeaseFilter(agent="ann", resource="support/")
        assert [lease.lease_id for lease in ledger.leases(together)] == ["lease_1"]
        await ledger.append("run_1", 1, [requested("lease_3"), requested("lease_4", kind="token")])
        await ledger.append("run_1", 1, [revoking("lease_3"), revoked("lease_3")])
        assert [lease.lease_id for lease in ledger.leases(together)] == ["lease_4", "lease_3", "lease_1"]
        assert len(rows(url, "lease_origin")) == 3, "one that is known is not noted again"
        assert ledger.verify("run_1") is None


def indexes_of(url: str) -> dict[str, tuple[list[str | None], str]]:
    """The columns of every index and its condition, without what PostgreSQL writes around it."""
    engine = connect(locate(url))
    found = {
        str(index["name"]): (index["column_names"], condition_of(index.get("dialect_options", {})))
        for table in metadata.tables
        for index in inspect(engine).get_indexes(table)
    }
    engine.dispose()
    return found


def condition_of(options: Mapping[str, object]) -> str:
    where = options.get("sqlite_where", options.get("postgresql_where", ""))
    return re.sub("[()]", "", str(where).replace("::text", "")).replace("sweep", "(sweep)")


def test_the_indexes_are_those_that_the_code_knows(ledger: Ledger, url: str) -> None:
    """With their conditions, which Alembic does not compare, and without which a query would not be answered by one."""
    known = {
        str(index.name): ([column.name for column in index.columns], condition_of(dict(index.dialect_kwargs)))
        for index in INDEXES
    }
    assert indexes_of(url) == {
        name: (columns, "" if where == "None" else where) for name, (columns, where) in known.items()
    }


def back_to_r0005(url: str) -> None:
    """Take away what r0006 and later ones added, and make what the first replaced, as the ledger was before."""
    filters = ("workflow", "step", "agent", "state", "resource", "grant_kind", "step_key", "vault_lease_id")
    engine = connect(locate(url))
    with engine.begin() as connection:
        for trigger in {"sqlite": ["lease_notes_origin"], "postgresql": ["lease_notes_origin ON lease"]}[engine.name]:
            connection.execute(text(f"DROP TRIGGER {trigger}"))
        if engine.name == "postgresql":
            connection.execute(text("DROP FUNCTION note_lease_origin"))
        connection.execute(text("DROP TABLE lease_origin"))
        connection.execute(text("ALTER TABLE runner DROP COLUMN recovered_by"))
        connection.execute(text("ALTER TABLE runner DROP COLUMN beat_at"))
        connection.execute(text("DROP INDEX queued_run_by_workflow"))
        for column in ("tries", "reason", "directory", "retry_of"):
            connection.execute(text(f"ALTER TABLE queued_run DROP COLUMN {column}"))
        for column in (
            "connections TEXT NOT NULL DEFAULT ''",
            "max_runs INTEGER NOT NULL DEFAULT 0",
            "claimed_by TEXT",
        ):
            connection.execute(text(f"ALTER TABLE queued_run ADD COLUMN {column}"))
        for table in (
            "fire",
            "approval",
            "approval_vote",
            "request_seen",
            "agent_block",
            "gate",
            "queue_pause",
            "log",
            "log_leaf",
            "log_node",
            "log_checkpoint",
            "log_published",
            "lease_waiter",
        ):
            connection.execute(text(f"DROP TABLE {table}"))
        kept = {
            "run_owner_by_runner",
            "queued_run_by_time",
            "queued_run_by_workflow",
            "lease_by_time",
            "lease_by_run",
            "lease_origin_by_all",
        }
        for index in INDEXES:
            if index.name not in kept and not str(index.name).startswith(("approval_", "lease_waiter_", "log_leaf_")):
                connection.execute(text(f"DROP INDEX {index.name}"))
        for column in ("task", "deadline", "idle", "retry_of", "logged", "dropped", "inline"):
            connection.execute(text(f"ALTER TABLE run DROP COLUMN {column}"))
        connection.execute(text("ALTER TABLE run_owner DROP COLUMN renewal"))
        if engine.name == "sqlite":
            connection.execute(text("DROP TRIGGER event_refuses_new_values"))
        connection.execute(text("ALTER TABLE event DROP COLUMN kept"))
        for name in filters:
            connection.execute(text(f"CREATE INDEX lease_by_{name} ON lease ({name}, requested_at, lease_id)"))
        connection.execute(text("CREATE INDEX run_by_time ON run (started_at, run_id)"))
        for name in ("workflow", "state"):
            connection.execute(text(f"CREATE INDEX run_by_{name} ON run ({name}, started_at, run_id)"))
        connection.execute(text("UPDATE alembic_version SET version_num = 'r0005'"))
    engine.dispose()


def back_to_r0004(url: str) -> None:
    """Take away what r0005 added, as the ledger was before."""
    back_to_r0005(url)
    engine = connect(locate(url))
    with engine.begin() as connection:
        for index in ("lease_by_step_key", "lease_by_vault_lease_id"):
            connection.execute(text(f"DROP INDEX {index}"))
        for column in ("revoking_since", "failed_tries", "last_try_at"):
            connection.execute(text(f"ALTER TABLE lease DROP COLUMN {column}"))
        connection.execute(text("UPDATE alembic_version SET version_num = 'r0004'"))
    engine.dispose()
