"""A run whose task dies in any way has an end, and its place, its schedule and its slots are free again."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, cast

import pytest
from bench import Bench, Setup
from fork_server import ForkServer
from queued import put_request, shared, worker_in_process
from test_serve import Served, served_on
from waiting import wait_for

from orchestrator.actions.catalog import catalog
from orchestrator.assembly import open_services
from orchestrator.errors import Defect, LedgerError
from orchestrator.ledger.events import Event, RunStarted
from orchestrator.ledger.ids import new_run_id
from orchestrator.ledger.lease import OPEN
from orchestrator.ledger.states import RunState
from orchestrator.ledger.types import LeaseFilter
from orchestrator.queue.shared import SharedQueue
from orchestrator.queue.tables import QueueState
from orchestrator.recovery.open_leases import close_left_over, left_over
from orchestrator.recovery.unended import end_run
from orchestrator.redaction.redactor import Redactor
from orchestrator.runs.runner import Runner
from orchestrator.runs.types import RunRequest, Services
from orchestrator.scheduling.launcher import Launched, Launcher
from orchestrator.scheduling.queue.carrying import Carrier
from orchestrator.workflow.inputs import bind_inputs
from orchestrator.workflow.loader import load_text

WORKFLOW = """
version: 1
name: {name}
agent: tester
max_runs: 1
schedule: {{ every: 1s, overlap: forbid }}
inputs: {{ ids: {{ type: array, default: [] }} }}
{context}
steps:
  read:
    action: postgres.query
    grants: {{ db: {{ kind: database, connection: support, role: feedback-read }} }}
    with: {{ sql: SELECT 1 AS id WHERE {where} }}
    outputs: [rows]
  use:
    action: postgres.query
    grants: {{ db: {{ kind: database, connection: support, role: feedback-read }} }}
    with: {{ sql: "SELECT %(id)s AS id", parameters: {{ id: "${{{{ steps.read.output.rows[0].id }}}}" }} }}
"""


def text_of(name: str, *, context: str = "", where: str = "true") -> str:
    return WORKFLOW.format(name=name, context=context, where=where)


def request(bench: Bench, text: str) -> RunRequest:
    loaded = load_text(text, filename="test.yaml", actions=catalog)
    bench.install(loaded.workflow)
    return RunRequest(run_id=new_run_id(), loaded=loaded, inputs=bind_inputs(loaded.workflow, {}))


class FailingLedger:
    """Is away `times`, when something is to be written that `when` is true of."""

    def __init__(self, ledger: Any, when: Callable[[Event], bool], error: Exception, times: int) -> None:
        self.ledger, self.when, self.error, self.times = ledger, when, error, times
        self.failed = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ledger, name)

    async def begin_run(self, run_id: str, started: Any, also: Any = ()) -> Any:
        self._perhaps([started])
        return await self.ledger.begin_run(run_id, started, also)

    async def append(self, run_id: str, fence: int, events: Any) -> None:
        self._perhaps(events)
        await self.ledger.append(run_id, fence, events)

    def _perhaps(self, events: Any) -> None:
        if self.failed < self.times and any(self.when(event) for event in events):
            self.failed += 1
            raise self.error


@asynccontextmanager
async def opened(
    bench: Bench, when: Callable[[Event], bool], error: Exception, *, times: int = 1, **changes: Any
) -> AsyncIterator[tuple[Services, Launcher]]:
    launcher = Launcher(max_runs=4, redactor=Redactor())
    async with open_services(
        bench.config(**changes), redactor=Redactor(), observer=lambda run, time, event: launcher.observe(run, event)
    ) as services:
        failing: Any = FailingLedger(services.ledger, when, error, times)
        yield replace(services, ledger=failing, broker=replace(services.broker, ledger=failing)), launcher


def of_kind(kind: str) -> Callable[[Event], bool]:
    return lambda event: event.kind == kind


ENDS = ("attempt.started", "lease.issued", "lease.revoking", "lease.revoked", "step.finished", "run.finished")


@pytest.mark.parametrize("kind", ENDS)
def test_a_run_whose_ledger_was_away_is_ended_as_soon_as_it_is_back(bench: Bench, setup: Setup, kind: str) -> None:
    async def go() -> None:
        how: Any = {"ledger_url": setup.ledger_url}
        async with opened(bench, of_kind(kind), LedgerError("away"), **how) as (services, launcher):
            launched = launcher.launch(Runner(services), request(bench, text_of("away")))
            assert await launcher.wait([launched], seconds=60)
            while launcher.active:
                await asyncio.sleep(0)
            run = services.reader.run(launched.run_id)
            assert run is not None
            assert (launched.run_id in launcher.unended) == (run.state is RunState.RUNNING)
            assert run.state is not RunState.SUCCEEDED
            await end_run(services, launched.run_id)
            await end_run(services, launched.run_id)
            await close_left_over(services, left_over(services.reader))
            check_ended(services, launched)
            assert launcher.unended == set(), "it hears of the end as of any event"

    asyncio.run(go())


def check_ended(services: Services, launched: Launched) -> None:
    reader = services.reader
    run = reader.run(launched.run_id)
    assert run is not None
    assert run.state is RunState.FAILED
    assert reader.verify(launched.run_id) is None
    kinds = [event.kind for event in reader.events(launched.run_id)]
    assert kinds.count("run.finished") == 1
    assert kinds.count("attempt.started") == kinds.count("attempt.finished")
    assert reader.leases(LeaseFilter(run=launched.run_id, states=OPEN)) == []


def test_a_run_of_another_process_is_not_ended(bench: Bench) -> None:
    async def go() -> None:
        away = LedgerError("away")
        async with opened(bench, of_kind("run.finished"), away, times=1000) as (services, launcher):
            launched = launcher.launch(Runner(services), request(bench, text_of("others")))
            await launcher.wait([launched])
            cast(FailingLedger, services.ledger).times = 0
            async with open_services(bench.config(), redactor=Redactor()) as other:
                await end_run(other, launched.run_id)
            run = services.reader.run(launched.run_id)
            assert run is not None
            assert run.state is RunState.RUNNING
            await end_run(services, launched.run_id)

    asyncio.run(go())


@pytest.mark.parametrize(
    "error", [LedgerError("away"), KeyError("x"), RuntimeError("x"), TimeoutError("x")], ids=lambda error: type(error)
)
def test_a_run_that_never_begins_frees_its_place_and_whoever_waits_for_it_is_told(
    bench: Bench, error: Exception
) -> None:
    async def go() -> None:
        async with opened(bench, of_kind("run.started"), error) as (services, launcher):
            launched = launcher.launch(Runner(services), request(bench, text_of("never")))
            await launcher.wait([launched])
            assert isinstance(launched.begun.exception(), LedgerError | Defect)
            while launcher.active:
                await asyncio.sleep(0)
            assert launcher.unended == set()

    asyncio.run(go())


in_queue = pytest.mark.parametrize("setup", ["queue"], indirect=True)


async def until(condition: Callable[[], Any], what: str) -> Any:
    return await asyncio.to_thread(wait_for, condition, what, 60)


async def worked_off(services: Services, queue: SharedQueue, run_id: str) -> RunState:
    """What becomes of a queued run. One that rests until it is tried again is handed out at once."""

    def ended() -> RunState | None:
        queue.wake(run_id)
        run = services.reader.run(run_id)
        return None if run is None or run.state is RunState.RUNNING else run.state

    state: RunState = await until(ended, f"the end of {run_id}")
    return state


def of_queue(queue: SharedQueue) -> dict[str, QueueState]:
    return {each.run_id: each.state for each in queue.list(set(QueueState))}


@in_queue
@pytest.mark.parametrize(
    ("text", "state"),
    [
        (text_of("good"), RunState.SUCCEEDED),
        (text_of("empty", where="false"), RunState.FAILED),
        (text_of("contextual", context="context: { one: '${{ inputs.ids[0] }}' }"), RunState.FAILED),
    ],
    ids=["good", "empty", "contextual"],
)
@pytest.mark.parametrize("error", [LedgerError("away"), KeyError("x"), None], ids=["away", "odd", "well"])
def test_a_worker_frees_the_place_of_a_run_however_it_dies(
    bench: Bench, setup: Setup, text: str, state: RunState, error: Exception | None
) -> None:
    """With `max_runs: 1` the second one begins only when the first one's place is free."""

    async def go() -> None:
        when = of_kind("run.started") if error else lambda event: False
        async with (
            opened(bench, when, error or Exception(), ledger_url=setup.ledger_url) as (services, launcher),
            worker_in_process(services, launcher, setup.ledger_url) as queue,
        ):
            first, second = request(bench, text), request(bench, text)
            put_request(queue, first)
            put_request(queue, second)
            assert await worked_off(services, queue, first.run_id) is state
            assert await worked_off(services, queue, second.run_id) is state
            await until(lambda: of_queue(queue) == {}, "the places to be free")
            assert [services.queue.holds(each.run_id) for each in (first, second)] == [False, False]

    asyncio.run(go())


@in_queue
def test_a_run_that_cannot_even_be_read_from_the_queue_does_not_keep_its_place(
    bench: Bench, setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def go() -> None:
        async with opened(bench, lambda event: False, Exception(), ledger_url=setup.ledger_url) as (services, launcher):
            unread = request(bench, text_of("unread"))
            async with worker_in_process(services, launcher, setup.ledger_url) as queue:
                with monkeypatch.context() as patched:
                    patched.setattr(
                        "orchestrator.scheduling.queue.carrying.recorded_workflow", lambda *given, **named: {}["no"]
                    )
                    put_request(queue, unread)
                    await until(lambda: of_queue(queue) == {unread.run_id: QueueState.DELAYED}, "it to rest")
                    assert queue.claimed() == []
                assert await worked_off(services, queue, unread.run_id) is RunState.SUCCEEDED

    asyncio.run(go())


@in_queue
@pytest.mark.parametrize("leaves", ["nothing else", "a run that goes on", "a token that may live"])
@pytest.mark.parametrize("where", ["before it is read", "while it waits for its turn"])
def test_a_worker_that_leaves_gives_back_what_it_was_handed_and_never_began(
    bench: Bench, setup: Setup, leaves: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it does where a signal comes between the two."""
    how: Any = {"ledger_url": setup.ledger_url}
    handed: list[str] = []

    async def never(self: Carrier, run_id: str, asked: Any) -> str:
        handed.append(run_id)
        return str(await asyncio.Event().wait())

    async def go() -> None:
        async with opened(bench, lambda event: False, Exception(), **how) as (services, launcher):
            store, me = services.heartbeat.store, services.heartbeat.runner_id
            given = request(bench, text_of("handed"))
            with monkeypatch.context() as patched:
                if where == "before it is read":
                    patched.setattr(Carrier, "carry", never)
                else:
                    patched.setattr(Launcher, "room", 0)
                async with worker_in_process(services, launcher, setup.ledger_url) as queue:
                    put_request(queue, given)
                    await until(lambda: handed or launcher.active, "the run to be handed out")
                    assert [(each.run_id, each.worker) for each in queue.claimed()] == [(given.run_id, me)]
            with shared(setup.ledger_url) as queue:
                assert of_queue(queue) == {given.run_id: QueueState.WAITING}
            if leaves == "a run that goes on":
                services.heartbeat.begin("goes-on", digest="d", text="t")
                started = RunStarted(workflow="w", digest="d", agent="a", trigger="manual", inputs={}, steps=())
                await services.ledger.begin_run("goes-on", started)
            if leaves == "a token that may live":
                store.retire(me, clean=False)
        async with opened(bench, lambda event: False, Exception(), **how) as (services, launcher):
            waiting = services.queue.get(given.run_id)
            assert waiting is not None
            assert waiting.tries == 0
            async with worker_in_process(services, launcher, setup.ledger_url) as queue:
                assert await worked_off(services, queue, given.run_id) is RunState.SUCCEEDED

    asyncio.run(go())


@pytest.fixture
def served(bench: Bench, children: ForkServer) -> Any:
    with served_on(bench, children) as served:
        yield served


def test_a_schedule_goes_on_after_runs_that_failed_on_an_empty_result(served: Served) -> None:
    text = text_of("empty", where="false")
    served.bench.install(load_text(text, filename="test.yaml", actions=catalog).workflow)
    (served.folder / "empty.yaml").write_text(text)
    served.start("--drain", "30")
    wait_for(lambda: len(served.runs("empty", RunState.FAILED)) >= 3, "three runs")
    figures = served.get("/metrics").text
    [failed] = re.findall(r'orchestrator_runs_total\{state="failed",workflow="empty"\} (\d+)', figures)
    assert int(failed) >= 3
    assert served.stop() == 0
    assert {run.state for run in served.runs("empty")} == {RunState.FAILED}
    assert {run.exit_code for run in served.runs("empty")} == {4}
