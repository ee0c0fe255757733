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
from orchestrator.recovery.open_leases import close_left_over, left_over
from orchestrator.recovery.unended import end_run
from orchestrator.redaction.redactor import Redactor
from orchestrator.runs.runner import Runner
from orchestrator.runs.types import RunRequest, Services
from orchestrator.scheduling.launcher import Launched, Launcher
from orchestrator.scheduling.queue import claiming, enqueue
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


async def worked_off(services: Services, launcher: Launcher, run_id: str) -> RunState:
    """What became of a queued run with a worker that looks again and again."""
    claim = claiming(services, launcher, {"support": 1}, max_runs=2)
    async with asyncio.timeout(60):
        while True:
            await claim()
            await launcher.wait(launcher.active)
            while launcher.active:
                await asyncio.sleep(0)
            run = services.reader.run(run_id)
            if run is not None and run.state is not RunState.RUNNING:
                return run.state


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
def test_a_worker_frees_the_slots_of_a_run_however_it_dies(
    bench: Bench, text: str, state: RunState, error: Exception | None
) -> None:
    async def go() -> None:
        when = of_kind("run.started") if error else lambda event: False
        async with opened(bench, when, error or Exception()) as (services, launcher):
            first, second = request(bench, text), request(bench, text)
            assert enqueue(services.queue, first, services.clock)
            assert enqueue(services.queue, second, services.clock)
            assert await worked_off(services, launcher, first.run_id) is state
            assert await worked_off(services, launcher, second.run_id) is state
            assert services.queue.all() == []

    asyncio.run(go())


def test_a_run_that_cannot_even_be_read_from_the_queue_does_not_keep_its_slots(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def go() -> None:
        async with opened(bench, lambda event: False, Exception()) as (services, launcher):
            queued = request(bench, text_of("unread"))
            enqueue(services.queue, queued, services.clock)
            claim = claiming(services, launcher, {}, max_runs=2)
            with monkeypatch.context() as patched:
                patched.setattr("orchestrator.scheduling.queue.recorded_workflow", lambda *given, **named: {}["no"])
                await claim()
            assert [each.claimed_by for each in services.queue.all()] == [None]
            assert await worked_off(services, launcher, queued.run_id) is RunState.SUCCEEDED

    asyncio.run(go())


@pytest.mark.parametrize("leaves", ["nothing else", "a run that goes on", "a token that may live"])
def test_a_worker_that_leaves_gives_back_what_it_had_claimed_and_never_begun(
    bench: Bench, setup: Setup, leaves: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it does where a signal comes between the claim and the beginning."""
    how: Any = {"ledger_url": setup.ledger_url}

    async def never(self: Runner, request: RunRequest, taken: Any = None) -> None:
        await asyncio.Event().wait()

    async def go() -> None:
        async with opened(bench, lambda event: False, Exception(), **how) as (services, launcher):
            store, me = services.heartbeat.store, services.heartbeat.runner_id
            queued = request(bench, text_of("claimed"))
            enqueue(services.queue, queued, services.clock)
            with monkeypatch.context() as patched:
                patched.setattr(Runner, "run", never)
                await claiming(services, launcher, {}, max_runs=2)()
                assert [each.claimed_by for each in services.queue.all()] == [me]
                (launched,) = launcher.active
                launched.task.cancel()
                assert await launcher.wait([launched], seconds=20)
            if leaves == "a run that goes on":
                services.heartbeat.begin("goes-on", digest="d", text="t")
                started = RunStarted(workflow="w", digest="d", agent="a", trigger="manual", inputs={}, steps=())
                await services.ledger.begin_run("goes-on", started)
            if leaves == "a token that may live":
                store.retire(me, clean=False)
        async with opened(bench, lambda event: False, Exception(), **how) as (services, launcher):
            [waiting] = services.queue.all()
            assert (waiting.claimed_by, waiting.tries) == (None, 0)
            assert await worked_off(services, launcher, queued.run_id) is RunState.SUCCEEDED

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
