"""Who may recover a dead process, and who may resume an interrupted run: one at a time, in both kinds of ledger."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from bench import Setup

from orchestrator.clock import SystemClock
from orchestrator.errors import FenceLost, IllegalTransition
from orchestrator.ledger.coordination.runners import RunnerRecord, RunnerStore
from orchestrator.ledger.events import (
    AttemptFinished,
    AttemptStarted,
    RunFinished,
    RunResumed,
    RunStarted,
    RunTakenOver,
    StepFinished,
)
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.states import RunState, StepState
from orchestrator.ledger.writing.store import Ledger

pytestmark = pytest.mark.parametrize("setup", ["sqlite", "postgresql"], indirect=True)

STARTED = RunStarted(workflow="w", digest="d", agent="a", trigger="manual", inputs={}, steps=("read", "wait", "last"))
INTERRUPTED = RunFinished(state=RunState.INTERRUPTED, exit_code=130, reason="the process dead is gone")
RESUMED = RunResumed(runner="alive", reason="")


def attempt(step: str, number: int = 1) -> AttemptStarted:
    return AttemptStarted(step=step, attempt=number, step_key=f"{step}-{number}", action="exec", timeout=9)


@pytest.fixture
def ledger(setup: Setup) -> Iterator[Ledger]:
    with open_ledger(setup.ledger_url, clock=SystemClock()) as opened:
        yield opened


@pytest.fixture
def store(ledger: Ledger) -> RunnerStore:
    """With one dead process, and one that lives."""
    runners = ledger.runners
    for name in ("dead", "alive"):
        runners.register(name, "{}")
    declare_gone(runners, "dead")
    return runners


def declare_gone(runners: RunnerStore, name: str) -> None:
    (seen,) = (each for each in runners.all() if each.runner_id == name)
    assert runners.declare_gone(seen)


def found(runners: RunnerStore, name: str) -> RunnerRecord | None:
    return next((each for each in runners.all() if each.runner_id == name), None)


def test_of_many_that_claim_a_dead_process_at_once_one_has_it(store: RunnerStore, setup: Setup) -> None:
    names = [f"recoverer-{number}" for number in range(8)]

    def claim(name: str) -> bool:
        with open_ledger(setup.ledger_url, clock=SystemClock()) as own:
            own.runners.register(name, "{}")
            return own.runners.claim("dead", name)

    with ThreadPoolExecutor(len(names)) as pool:
        won = [name for name, has in zip(names, pool.map(claim, names), strict=True) if has]
    assert len(won) == 1
    assert store.claim("dead", won[0]), "who has it has it when asked again"
    assert not store.claim("dead", "alive")


def test_a_claim_ends_with_the_life_of_the_claimer(store: RunnerStore) -> None:
    store.register("first", "{}")
    assert store.claim("dead", "first")
    assert not store.claim("dead", "alive")
    declare_gone(store, "first")
    assert store.claim("dead", "alive")
    assert not store.claim("dead", "first"), "who is taken for dead recovers nobody"
    store.register("second", "{}")
    store.retire("alive")
    assert store.claim("dead", "second"), "it ends too where the claimer has left in peace"


def test_only_a_dead_process_can_be_claimed_and_only_by_one_that_is_entered(store: RunnerStore) -> None:
    store.register("living", "{}")
    assert not store.claim("living", "alive")
    assert not store.claim("nobody", "alive")
    assert not store.claim("dead", "never entered")


async def test_a_dead_process_is_forgotten_by_its_recoverer_once_nothing_of_it_is_unfinished(
    store: RunnerStore, ledger: Ledger
) -> None:
    assert store.own("run_1", "dead", digest="d", text="")
    fence = await ledger.begin_run("run_1", STARTED)
    assert not store.bury("dead", "alive"), "without the claim"
    assert store.claim("dead", "alive")
    assert not store.bury("dead", "alive"), "with a run that has not ended"
    await ledger.append("run_1", fence, [INTERRUPTED])
    assert store.unfinished("dead") == []
    assert store.bury("dead", "alive")
    assert found(store, "dead") is None
    assert store.owner("run_1") is None


async def test_an_interrupted_run_is_reopened_by_one_process(store: RunnerStore, ledger: Ledger, setup: Setup) -> None:
    assert store.own("run_1", "dead", digest="d", text="")
    fence = await ledger.begin_run("run_1", STARTED)
    with pytest.raises(FenceLost, match="goes on by now"):
        await ledger.resume("run_1", RESUMED)
    await ledger.append("run_1", fence, [INTERRUPTED])
    store.request_cancel("run_1", "of before")
    names = [f"resumer-{number}" for number in range(6)]

    def resumed(name: str) -> int | None:
        with open_ledger(setup.ledger_url, clock=SystemClock()) as own:
            try:
                return asyncio.run(own.resume("run_1", replace(RESUMED, runner=name)))
            except FenceLost:
                return None

    with ThreadPoolExecutor(len(names)) as pool:
        found = list(pool.map(resumed, names))
    (won,) = [(name, new) for name, new in zip(names, found, strict=True) if new is not None]
    assert (store.owner("run_1"), won[1], store.cancellation("run_1")) == (won[0], fence + 1, None)
    with pytest.raises(FenceLost):
        await ledger.append("run_1", fence, [RunFinished(state=RunState.SUCCEEDED, exit_code=0)])
    await ledger.append("run_1", won[1], [RunFinished(state=RunState.SUCCEEDED, exit_code=0)])
    with pytest.raises(FenceLost, match="has ended"):
        await ledger.resume("run_1", RESUMED)
    assert [each.kind for each in ledger.events("run_1")].count("run.resumed") == 1
    assert ledger.examine("run_1").whole


async def test_the_fence_of_a_run_that_was_resumed_is_not_taken_for_one_that_has_ended(ledger: Ledger) -> None:
    fence = await ledger.begin_run("run_1", STARTED)
    with pytest.raises(FenceLost, match="goes on"):
        await ledger.take_over("run_1", ended=True)
    await ledger.append("run_1", fence, [INTERRUPTED])
    fence = await ledger.take_over("run_1", ended=True)
    await ledger.append("run_1", fence, [RESUMED])
    with pytest.raises(FenceLost, match="goes on"):
        await ledger.take_over("run_1", ended=True)
    await ledger.append("run_1", fence, [attempt("read")])


async def test_an_interrupted_run_goes_on_in_every_table_as_in_its_events(ledger: Ledger) -> None:
    fence = await ledger.begin_run("run_1", STARTED)
    done = StepFinished(step="last", state=StepState.SUCCEEDED)
    await ledger.append("run_1", fence, [attempt("read"), attempt("wait"), attempt("last"), done])
    crash = AttemptFinished(step="read", attempt=1, state=StepState.FAILED, error_kind="crash", reason="died")
    await ledger.append("run_1", fence, [crash, INTERRUPTED])
    assert state(ledger) == ("interrupted", 130, {"read": "interrupted", "wait": "interrupted", "last": "succeeded"})
    await ledger.append("run_1", fence, [RESUMED])
    assert state(ledger) == ("running", None, {"read": "interrupted", "wait": "interrupted", "last": "succeeded"})
    await ledger.append("run_1", fence, [attempt("read", 2)])
    before = state(ledger)
    assert before == ("running", None, {"read": "running", "wait": "interrupted", "last": "succeeded"})
    ledger.rebuild("run_1")
    assert state(ledger) == before
    assert ledger.verify("run_1") is None


def state(ledger: Ledger) -> tuple[str, int | None, dict[str, str]]:
    record = ledger.run("run_1")
    assert record is not None
    return record.state.value, record.exit_code, {step.step: step.state.value for step in ledger.steps("run_1")}


async def test_only_an_interrupted_run_is_resumed_and_it_ends_only_after_that(ledger: Ledger) -> None:
    fence = await ledger.begin_run("run_1", STARTED)
    with pytest.raises(IllegalTransition, match="only a run that was interrupted"):
        await ledger.append("run_1", fence, [RESUMED])
    await ledger.append("run_1", fence, [INTERRUPTED])
    for again in (INTERRUPTED, RunFinished(state=RunState.FAILED, exit_code=4)):
        with pytest.raises(IllegalTransition, match="must be resumed"):
            await ledger.append("run_1", fence, [again])
    await ledger.append("run_1", fence, [RESUMED, RunFinished(state=RunState.SUCCEEDED, exit_code=0)])
    with pytest.raises(IllegalTransition):
        await ledger.append("run_1", fence, [RESUMED])
    assert ledger.verify("run_1") is None


async def test_who_is_taken_for_dead_can_record_nothing_more_of_what_it_ran(store: RunnerStore, ledger: Ledger) -> None:
    """Else it would end its runs as cancelled when it learns of it, and nobody would go on with them."""
    store.register("silent", "{}")
    fences = {}
    for run_id, runner in (("theirs", "silent"), ("ours", "alive")):
        assert store.own(run_id, runner, digest="d", text="")
        fences[run_id] = await ledger.begin_run(run_id, STARTED)
    cancelled = RunFinished(state=RunState.CANCELLED, exit_code=143, reason="the service was stopped")
    declare_gone(store, "silent")
    with pytest.raises(FenceLost):
        await ledger.append("theirs", fences["theirs"], [cancelled])
    taken = await ledger.take_over("theirs")
    await ledger.append("theirs", taken, [RunTakenOver(runner="alive", reason="", goes_on=True)])
    await ledger.append("ours", fences["ours"], [cancelled])
    states = {run_id: record.state for run_id in fences if (record := ledger.run(run_id)) is not None}
    assert states == {"theirs": RunState.RUNNING, "ours": RunState.CANCELLED}
