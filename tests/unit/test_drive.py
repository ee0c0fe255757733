"""The walk over the graph: order, skipping, cancellation, and that nothing is left running."""

import asyncio
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.ledger.states import StepState
from orchestrator.runs.graph_walk import Graph, drive

OK, FAILED, REFUSED, SKIPPED, CANCELLED = (
    StepState.SUCCEEDED,
    StepState.FAILED,
    StepState.REFUSED,
    StepState.SKIPPED,
    StepState.CANCELLED,
)


class Recorder:
    """Carries out steps that end as told, and remembers what happened in which order."""

    def __init__(self, ends: Mapping[str, StepState] | None = None, forever: frozenset[str] = frozenset()) -> None:
        self.ends = ends or {}
        self.forever = forever
        self.log: list[tuple[str, str]] = []
        self.skipped: dict[str, tuple[StepState, str]] = {}
        self.running = 0
        self.most_at_once = 0
        self.started = asyncio.Event()

    async def call(self, step: str) -> StepState:
        self.log.append(("start", step))
        self.running += 1
        self.most_at_once = max(self.most_at_once, self.running)
        self.started.set()
        try:
            if step in self.forever:
                await asyncio.Event().wait()
            await asyncio.sleep(0)
            return self.ends.get(step, OK)
        finally:
            self.running -= 1
            self.log.append(("end", step))

    async def skip(self, step: str, state: StepState, reason: str) -> None:
        self.skipped[step] = (state, reason)


def graph(**needs: str) -> dict[str, frozenset[str]]:
    return {step: frozenset(text.split()) for step, text in needs.items()}


async def test_a_step_starts_only_after_all_that_it_needs_has_ended() -> None:
    steps = Recorder()
    ended = await drive(Graph(dependencies=graph(a="", b="a", c="a", d="b c")), steps.call, steps.skip, parallel=4)
    assert set(ended.values()) == {OK}
    position = {entry: index for index, entry in enumerate(steps.log)}
    assert position["end", "a"] < position["start", "b"]
    assert max(position["end", "b"], position["end", "c"]) < position["start", "d"]
    assert steps.most_at_once == 2


async def test_no_more_steps_run_at_once_than_allowed() -> None:
    steps = Recorder()
    await drive(Graph(dependencies={f"s{n}": frozenset() for n in range(20)}), steps.call, steps.skip, parallel=3)
    assert steps.most_at_once == 3


@pytest.mark.parametrize("bad", [FAILED, REFUSED])
async def test_dependents_of_a_failed_step_are_skipped_and_siblings_go_on(bad: StepState) -> None:
    steps = Recorder({"a": bad})
    ended = await drive(Graph(dependencies=graph(a="", b="a", c="b", other="")), steps.call, steps.skip, parallel=4)
    assert ended == {"a": bad, "b": SKIPPED, "c": SKIPPED, "other": OK}
    assert "needs `a`" in steps.skipped["b"][1]


async def test_a_tolerated_failure_does_not_hold_dependents_back() -> None:
    steps = Recorder({"a": FAILED})
    walk = Graph(dependencies=graph(a="", b="a"), tolerant=frozenset({"a"}))
    assert await drive(walk, steps.call, steps.skip, parallel=4) == {"a": FAILED, "b": OK}


async def test_on_failure_cancel_stops_running_siblings_and_starts_no_others() -> None:
    steps = Recorder({"a": REFUSED}, forever=frozenset({"long"}))
    walk = Graph(dependencies=graph(a="", long="", later="long"), on_failure="cancel")
    ended = await drive(walk, steps.call, steps.skip, parallel=4)
    assert ended == {"a": REFUSED, "long": CANCELLED, "later": CANCELLED}
    assert steps.running == 0


async def test_a_cancelled_walk_waits_for_the_clean_up_of_its_steps() -> None:
    steps = Recorder(forever=frozenset({"a"}))
    walk = asyncio.create_task(drive(Graph(dependencies=graph(a="", b="a")), steps.call, steps.skip, parallel=4))
    await steps.started.wait()
    walk.cancel()
    with pytest.raises(asyncio.CancelledError):
        await walk
    assert steps.running == 0
    assert steps.skipped["b"][0] is CANCELLED


async def test_an_error_that_ends_the_walk_still_awaits_the_other_steps() -> None:
    steps = Recorder(forever=frozenset({"a"}))

    async def call(step: str) -> StepState:
        if step == "broken":
            await steps.started.wait()
            raise RuntimeError("the ledger is gone")
        return await steps.call(step)

    with pytest.raises(RuntimeError, match="ledger"):
        await drive(Graph(dependencies=graph(a="", broken="")), call, steps.skip, parallel=4)
    assert steps.running == 0


@given(st.data())
def test_every_step_of_any_graph_ends_exactly_once(data: st.DataObject) -> None:
    names = [f"s{n}" for n in range(data.draw(st.integers(1, 8)))]
    needs = {
        name: frozenset(data.draw(st.lists(st.sampled_from(names[:index]), max_size=3))) if index else frozenset()
        for index, name in enumerate(names)
    }
    order = data.draw(st.permutations(names))
    ends = {name: data.draw(st.sampled_from([OK, FAILED, REFUSED])) for name in names}
    walk = Graph(
        dependencies={name: needs[name] for name in order},
        tolerant=frozenset(data.draw(st.lists(st.sampled_from(names)))),
        on_failure=data.draw(st.sampled_from(["continue", "cancel"])),
    )
    steps = Recorder(ends)
    ended = asyncio.run(drive(walk, steps.call, steps.skip, parallel=data.draw(st.integers(1, 4))))
    assert ended.keys() == set(names)
    ran = [step for what, step in steps.log if what == "start"]
    assert len(ran) == len(set(ran))
    assert set(ran) | set(steps.skipped) == set(names)
    for step in ran:
        for needed in needs[step]:
            assert ended[needed] is OK or needed in walk.tolerant
