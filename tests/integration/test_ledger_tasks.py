"""Tasks in the ledger, on both databases: what is called is counted in the transaction that begins the call."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from orchestrator.errors import (
    AgentBlocked,
    BudgetSpent,
    IllegalTransition,
    LedgerError,
    OrchestratorError,
    TaskEnded,
    UnknownRun,
    UsageError,
)
from orchestrator.ledger.events import Decided, LeaseRequested, RunFinished, RunResumed, RunStarted
from orchestrator.ledger.findings import DecisionFilter
from orchestrator.ledger.ids import call_id, new_task_id
from orchestrator.ledger.location import locate
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.reading.queries import SWEEP_WORKFLOW
from orchestrator.ledger.states import RunState, TaskState
from orchestrator.ledger.storage.connect import connect
from orchestrator.ledger.task_events import TaskCalled, TaskClosed, TaskOpened
from orchestrator.ledger.types import CallLimits, LeaseFilter
from orchestrator.ledger.writing.store import Ledger
from orchestrator.tasks.closing import close_task, close_what_is_over, cut_off
from orchestrator.tasks.reach import Reach

START = datetime(2026, 1, 31, 12, tzinfo=UTC)
NONE = CallLimits()
OPENED = TaskOpened(
    task="task_1",
    workflow="complaint",
    digest="d1",
    agent="ann",
    inputs={"customer_id": 1234},
    context={"case": "c-1"},
    tools=("read", "write"),
    deadline=START + timedelta(minutes=15),
    idle=60,
    caller={"issuer": "vault", "subject": "s-1"},
)


class HandClock:
    """A clock that somebody sets."""

    def __init__(self) -> None:
        self.time = START

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return (self.time - START).total_seconds()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path, empty_ledger: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{shutil.copy(empty_ledger, tmp_path / 'ledger.db')}"
        return
    yield str(request.getfixturevalue("new_ledger"))


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def ledger(url: str, clock: HandClock) -> Iterator[Ledger]:
    with open_ledger(url, clock=clock) as opened:
        yield opened


def called(key: str, tool: str = "read", task: str = "task_1") -> tuple[TaskCalled, RunStarted]:
    run_id = call_id(task, key)
    started = RunStarted(
        workflow="complaint",
        digest="d1",
        agent="ann",
        trigger="call",
        inputs={"customer_id": 1234},
        steps=(tool,),
        task=task,
        call={"limit": 5},
        caller={"issuer": "vault", "subject": "s-1"},
    )
    return TaskCalled(call=run_id, tool=tool, arguments_digest="sha256:1"), started


async def opened(ledger: Ledger, task: str = "task_1", **changes: Any) -> None:
    assert await ledger.begin_run(task, replace(OPENED, task=task, **changes)) == 1


async def call(ledger: Ledger, key: str, tool: str = "read", task: str = "task_1", limits: CallLimits = NONE) -> str:
    event, started = called(key, tool, task)
    await ledger.begin_call(event, task, started, limits, "runner-1")
    return event.call


async def end(ledger: Ledger, run_id: str, state: RunState = RunState.SUCCEEDED) -> None:
    await ledger.append(run_id, 1, [RunFinished(state=state, exit_code=0)])


def whole(ledger: Ledger) -> bool:
    return all(each.whole for each in ledger.examine_all())


async def test_a_task_is_opened_called_in_and_closed(ledger: Ledger, clock: HandClock) -> None:
    await opened(ledger)
    first = await call(ledger, "k1")
    clock.time += timedelta(seconds=3)
    second = await call(ledger, "k2", "write")
    record = ledger.task("task_1")
    assert record is not None
    assert (record.workflow, record.agent, record.tools) == ("complaint", "ann", ("read", "write"))
    assert (record.inputs, record.idle, record.deadline) == ({"customer_id": 1234}, 60, OPENED.deadline)
    assert (record.state, record.opened_at, record.closed_at) == (TaskState.OPEN, START, None)
    assert [(each.run_id, each.task, each.state) for each in ledger.calls("task_1")] == [
        (first, "task_1", RunState.RUNNING),
        (second, "task_1", RunState.RUNNING),
    ]
    clock.time += timedelta(seconds=3)
    assert await ledger.close_task("task_1", TaskClosed(by="ann", reason="done"))
    assert not await ledger.close_task("task_1", TaskClosed(by="deadline"))
    record = ledger.task("task_1")
    assert record is not None
    assert (record.state, record.closed_at, record.reason) == (TaskState.CLOSED, clock.time, "done")
    kinds = [(each.kind, each.data.get("call")) for each in ledger.events("task_1")]
    assert kinds == [
        ("task.opened", None),
        ("task.called", first),
        ("task.called", second),
        ("task.closed", None),
    ]
    assert ledger.verify("task_1") is None
    assert whole(ledger)
    with pytest.raises(TaskEnded, match="closed: done"):
        await call(ledger, "k3")
    assert [each.run_id for each in ledger.calls("task_1")] == [first, second]
    ledger.rebuild("task_1")
    assert ledger.task("task_1") == record
    ledger.rebuild(first)
    assert whole(ledger)


async def test_tasks_and_calls_are_not_among_the_runs(ledger: Ledger) -> None:
    await opened(ledger)
    run_id = await call(ledger, "k1")
    alone = called("k2")[1]
    await ledger.begin_run("run_1", replace(alone, task=""))
    assert [each.run_id for each in ledger.runs()] == ["run_1"]
    assert [each.run_id for each in ledger.runs(state=RunState.RUNNING)] == ["run_1"]
    assert {each.run_id for each in ledger.runs(workflow="complaint")} == {"run_1", run_id}
    assert ledger.run("task_1") is None
    assert ledger.task("run_1") is None
    assert ledger.task(run_id) is None
    found = ledger.run(run_id)
    assert found is not None
    assert found.task == "task_1"


async def test_tasks_are_listed_newest_first_by_agent_and_state(ledger: Ledger, clock: HandClock) -> None:
    for number, agent in enumerate(("ann", "bob", "ann")):
        clock.time += timedelta(seconds=1)
        await opened(ledger, f"task_{number}", agent=agent)
    await ledger.close_task("task_0", TaskClosed(by="ann"))

    def ids(**wanted: object) -> list[str]:
        return [each.task_id for each in ledger.tasks(**wanted)]  # type: ignore[arg-type]

    assert ids() == ["task_2", "task_1", "task_0"]
    assert ids(limit=2) == ["task_2", "task_1"]
    assert ids(agent="ann") == ["task_2", "task_0"]
    assert ids(state=TaskState.OPEN) == ["task_2", "task_1"]
    assert ids(agent="ann", state=TaskState.CLOSED) == ["task_0"]
    assert ids(agent="eve") == []


async def test_what_is_no_task_is_none(ledger: Ledger) -> None:
    await ledger.begin_run("run_1", replace(called("k")[1], task=""))
    for task in ("task_0", "run_1"):
        with pytest.raises(UnknownRun):
            await call(ledger, "k", task=task)
        with pytest.raises(UnknownRun):
            await ledger.close_task(task, TaskClosed(by="ann"))
    with pytest.raises(UsageError, match="already"):
        await ledger.begin_run("run_1", replace(OPENED, task="run_1"))
    await opened(ledger)
    with pytest.raises(UsageError, match="already"):
        await opened(ledger)
    assert whole(ledger)


async def test_the_same_call_begins_once(ledger: Ledger) -> None:
    await opened(ledger)
    await call(ledger, "k1")
    with pytest.raises(UsageError, match="already"):
        await call(ledger, "k1")
    assert [each.kind for each in ledger.events("task_1")] == ["task.opened", "task.called"]
    assert ledger.runners.owner(call_id("task_1", "k1")) == "runner-1"
    assert whole(ledger)


async def test_the_deadline_holds_by_the_ledgers_clock(ledger: Ledger, clock: HandClock) -> None:
    await opened(ledger, idle=None)
    clock.time = OPENED.deadline - timedelta(microseconds=1)
    await call(ledger, "k1")
    clock.time = OPENED.deadline
    with pytest.raises(TaskEnded, match="deadline"):
        await call(ledger, "k2")
    assert len(ledger.calls("task_1")) == 1


async def test_idle_is_counted_from_the_last_thing_that_happened(ledger: Ledger, clock: HandClock) -> None:
    await opened(ledger)
    clock.time += timedelta(seconds=59)
    first = await call(ledger, "k1")
    clock.time += timedelta(seconds=300)
    second = await call(ledger, "k2")  # the first one goes on
    await end(ledger, second)
    clock.time += timedelta(seconds=30)
    await end(ledger, first)
    clock.time += timedelta(seconds=59)
    await end(ledger, await call(ledger, "k3"))
    clock.time += timedelta(seconds=60)
    with pytest.raises(TaskEnded, match="nothing was called in it for 60 s"):
        await call(ledger, "k4")


@pytest.mark.parametrize("ending", [RunState.SUCCEEDED, RunState.REFUSED, RunState.FAILED, RunState.CANCELLED])
async def test_calls_count_however_they_end(ledger: Ledger, ending: RunState) -> None:
    await opened(ledger)
    limits = CallLimits(max_calls=2)
    await end(ledger, await call(ledger, "k1", limits=limits), ending)
    await end(ledger, await call(ledger, "k2", limits=limits), ending)
    with pytest.raises(BudgetSpent, match="`read` may be called 2 times in a task of this type"):
        await call(ledger, "k3", limits=limits)
    await call(ledger, "k3", "write", limits=limits)
    await opened(ledger, "task_2")
    await call(ledger, "k3", task="task_2", limits=limits)
    assert [len(ledger.calls(task)) for task in ("task_1", "task_2")] == [3, 1]


async def test_those_that_are_open_are_counted_until_they_end(ledger: Ledger) -> None:
    await opened(ledger)
    limits = CallLimits(max_open=2)
    first = await call(ledger, "k1", limits=limits)
    waiting = await call(ledger, "k2", limits=limits)
    await ledger.append(waiting, 1, [RunFinished(state=RunState.WAITING, exit_code=7)])
    with pytest.raises(BudgetSpent, match="as many calls of `read` are open"):
        await call(ledger, "k3", limits=limits)
    await end(ledger, first)
    await call(ledger, "k3", limits=limits)
    with pytest.raises(BudgetSpent):
        await call(ledger, "k4", limits=limits)


@pytest.mark.parametrize(
    ("limits", "most", "ends"),
    [(CallLimits(max_calls=30), 30, True), (CallLimits(max_open=7), 7, False)],
    ids=["made", "open"],
)
async def test_many_processes_together_never_exceed_a_budget(
    url: str, clock: HandClock, limits: CallLimits, most: int, ends: bool
) -> None:
    """Four ledgers on one database, two tasks, calls of both at once: nobody waits in a circle, none is counted
    twice."""
    with ExitStack() as stack:
        ledgers = [stack.enter_context(open_ledger(url, clock=clock)) for _ in range(4)]
        for task in ("task_1", "task_2"):
            await opened(ledgers[0], task)

        async def attempt(number: int) -> str:
            task = f"task_{number % 2 + 1}"
            try:
                run_id = await call(ledgers[number % 4], f"k{number}", task=task, limits=limits)
                if ends:
                    await end(ledgers[number % 4], run_id)
            except BudgetSpent:
                return "spent"
            return task

        found = await asyncio.gather(*(attempt(number) for number in range(160)))
        assert [found.count(each) for each in ("task_1", "task_2")] == [most, most]
        for task in ("task_1", "task_2"):
            assert len(ledgers[3].calls(task)) == most
            assert len(ledgers[3].events(task)) == most + 1
        assert whole(ledgers[2])


async def test_an_agent_has_one_budget_over_all_its_tasks_and_processes(url: str, clock: HandClock) -> None:
    with ExitStack() as stack:
        ledgers = [stack.enter_context(open_ledger(url, clock=clock)) for _ in range(4)]
        for number in range(8):
            await opened(ledgers[0], f"task_{number}")
        limits = CallLimits(of_agent=5)

        async def attempt(number: int) -> str:
            try:
                return await call(ledgers[number % 4], f"k{number}", task=f"task_{number % 8}", limits=limits)
            except BudgetSpent as error:
                assert "`ann` has as many calls open as it may at once: 5" in error.message
                return ""

        began = [each for each in await asyncio.gather(*(attempt(number) for number in range(64))) if each]
        assert len(began) == 5
        await end(ledgers[0], began[0])
        assert await attempt(100)
        assert not await attempt(101)
        assert whole(ledgers[1])


async def test_a_closing_comes_before_or_after_a_call_and_never_between(url: str, clock: HandClock) -> None:
    with ExitStack() as stack:
        ledgers = [stack.enter_context(open_ledger(url, clock=clock)) for _ in range(3)]
        await opened(ledgers[0])

        async def attempt(number: int) -> OrchestratorError | None:
            await asyncio.sleep(number / 1000)
            if number == 15:
                await ledgers[2].close_task("task_1", TaskClosed(by="ann"))
            try:
                await call(ledgers[number % 2], f"k{number}")
            except TaskEnded as error:
                return error
            return None

        refused = [each for each in await asyncio.gather(*(attempt(number) for number in range(40))) if each]
        kinds = [each.kind for each in ledgers[0].events("task_1")]
        assert kinds[-1] == "task.closed"
        assert kinds.count("task.called") == len(ledgers[0].calls("task_1")) == 40 - len(refused)
        assert 0 < len(refused) < 40
        assert whole(ledgers[0])


async def test_nothing_is_added_to_a_task_that_is_closed(ledger: Ledger) -> None:
    await opened(ledger)
    await ledger.close_task("task_1", TaskClosed(by="ann"))
    with pytest.raises(IllegalTransition):
        await ledger.append("task_1", 1, [TaskClosed(by="bob")])
    with pytest.raises(LedgerError, match="begun already"):
        await ledger.append("task_1", 1, [OPENED])
    assert len(ledger.events("task_1")) == 2


@pytest.mark.parametrize("until", [None, START + timedelta(minutes=5)])
async def test_an_agent_that_is_cut_off_begins_nothing(
    ledger: Ledger, url: str, clock: HandClock, until: datetime | None
) -> None:
    await opened(ledger)
    ledger.agents.block("ann", until=until, by="root", reason="it went wild", now=START)
    for attempt in (
        opened(ledger, "task_2"),
        call(ledger, "k1"),
        ledger.begin_run("run_1", replace(called("k")[1], task="")),
    ):
        with pytest.raises(AgentBlocked, match="`ann`"):
            await attempt
    await opened(ledger, "task_3", agent="bob")
    (block,) = ledger.agents.blocks(now=clock.time)
    assert (block.agent, block.until, block.by, block.reason) == ("ann", until, "root", "it went wild")
    clock.time += timedelta(minutes=5)
    if until is None:
        with pytest.raises(AgentBlocked):
            await opened(ledger, "task_2")
        assert ledger.agents.restore("ann")
        assert not ledger.agents.restore("ann")
    assert ledger.agents.blocks(now=clock.time) == []
    await opened(ledger, "task_2")
    assert {each.task_id for each in ledger.tasks()} == {"task_1", "task_2", "task_3"}


async def test_nobody_goes_on_with_a_run_of_an_agent_that_is_cut_off(ledger: Ledger) -> None:
    await ledger.begin_run("run_1", replace(called("k")[1], task=""))
    await end(ledger, "run_1", RunState.INTERRUPTED)
    ledger.agents.block("ann", until=None, by="root", reason="", now=START)
    resumed = RunResumed(runner="runner-2", reason="again")
    with pytest.raises(AgentBlocked, match="`ann`"):
        await ledger.resume("run_1", resumed)
    found = ledger.run("run_1")
    assert found is not None
    assert (found.state, found.fence) == (RunState.INTERRUPTED, 1)
    ledger.agents.restore("ann")
    assert await ledger.resume("run_1", resumed) == 2
    assert whole(ledger)


async def test_what_is_under_way_is_told_of_one_agent_and_of_all(ledger: Ledger) -> None:
    await opened(ledger)
    going, done, waits = await call(ledger, "k1"), await call(ledger, "k2"), await call(ledger, "k3")
    await end(ledger, done)
    await end(ledger, waits, RunState.WAITING)
    for number, (agent, workflow) in enumerate((("bob", "other"), ("bob", "other"), ("cleaner", SWEEP_WORKFLOW))):
        await ledger.begin_run(f"run_{number}", replace(called("k")[1], task="", agent=agent, workflow=workflow))
    await end(ledger, "run_1", RunState.WAITING)

    def told(agent: str | None) -> list[str]:
        return [each.run_id for each in ledger.under_way(agent)]

    assert told("ann") == [going], "whether a call waits is asked of its task"
    assert told("bob") == ["run_0", "run_1"], "although its request for approval is not open"
    assert sorted(told(None)) == sorted([going, "run_0", "run_1"])


@pytest.mark.parametrize("end_of", ["task", "agent"])
async def test_what_goes_on_is_not_said_to_be_gone_although_it_holds_nothing_yet(
    ledger: Ledger, clock: HandClock, end_of: str
) -> None:
    await opened(ledger)
    going = await call(ledger, "k1")
    reach = Reach.of_ledger(ledger, clock)

    async def ended() -> bool:
        if end_of == "task":
            return await close_task(reach, "task_1", by="root", reason="enough", seconds=0)
        return await cut_off(reach, "ann", by="root", reason="enough", seconds=0)

    assert not await ended()
    await end(ledger, going, RunState.CANCELLED)
    assert await ended()


@pytest.mark.parametrize("ended_by", ["deadline", "agent"])
async def test_a_call_that_somebody_has_agreed_to_ends_with_its_task(
    ledger: Ledger, clock: HandClock, ended_by: str
) -> None:
    """Its request for approval is decided, and its agent has not come back: nothing but its task leads to it."""
    await opened(ledger)
    waits = await call(ledger, "k1")
    await end(ledger, waits, RunState.WAITING)
    reach = Reach.of_ledger(ledger, clock)
    if ended_by == "deadline":
        clock.time += timedelta(minutes=15)
        (closed,) = await close_what_is_over(reach)
        assert closed.task_id == "task_1"
    else:
        assert await cut_off(reach, "ann", by="root", reason="")
    found = ledger.run(waits)
    assert found is not None
    assert found.state is RunState.CANCELLED
    assert whole(ledger)


async def test_what_was_changed_in_the_tables_is_found(ledger: Ledger, url: str) -> None:
    await opened(ledger)
    await call(ledger, "k1")
    engine = connect(locate(url))
    with engine.begin() as connection:
        connection.execute(text("UPDATE run SET deadline = '2099-01-01T00:00:00.000000Z' WHERE run_id = 'task_1'"))
        connection.execute(text("UPDATE run SET task = NULL WHERE run_id <> 'task_1'"))
    engine.dispose()
    found = {each.run_id: [difference.columns for difference in each.differences] for each in ledger.examine_all()}
    assert found == {"task_1": [("deadline",)], call_id("task_1", "k1"): [("task",)]}


async def test_the_decisions_of_calls_are_read_in_the_order_of_all(ledger: Ledger, clock: HandClock) -> None:
    def decided(step: str) -> Decided:
        return Decided(step=step, attempt=1, engine="rego", revision="r", input_digest="i", allow=True, reasons=())

    await opened(ledger)
    for number in range(3):
        clock.time += timedelta(seconds=1)
        run_id = await call(ledger, f"k{number}")
        await ledger.append(run_id, 1, [decided(f"call{number}")])
        clock.time += timedelta(seconds=1)
        await ledger.begin_run(f"run_{number}", replace(called("k")[1], task=""))
        await ledger.append(f"run_{number}", 1, [decided(f"run{number}")])
    found = [each.decided.step for each in ledger.decisions(DecisionFilter())]
    assert found == ["call0", "run0", "call1", "run1", "call2", "run2"]


async def test_leases_are_found_by_their_task(ledger: Ledger) -> None:
    await opened(ledger)
    lease = LeaseRequested(
        lease_id="lease_1", step="read", attempt=1, grant="g", grant_kind="database", resource="x", scope={}, ttl=60
    )
    run_id = await call(ledger, "k1")
    await ledger.append(run_id, 1, [lease])
    await ledger.begin_run("run_1", replace(called("k")[1], task=""))
    await ledger.append("run_1", 1, [replace(lease, lease_id="lease_2")])
    assert [each.lease_id for each in ledger.leases(LeaseFilter(task="task_1"))] == ["lease_1"]
    assert [each.lease_id for each in ledger.leases(LeaseFilter(task="task_1", agent="bob"))] == []
    assert ledger.leases(LeaseFilter(task="task_2")) == []


def test_a_call_has_one_id_for_its_key_and_task() -> None:
    task, other = new_task_id(), new_task_id()
    assert task.startswith("task_")
    assert task != other
    assert call_id(task, "k") == call_id(task, "k") != call_id(other, "k") != call_id(task, "k2")
    assert call_id("a\nb", "c") != call_id("a", "b\nc")
