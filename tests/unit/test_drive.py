"""The walk over the graph: order, skipping, cancellation, and that nothing is left running."""

import asyncio
import contextlib
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.ledger.states import StepState
from orchestrator.runs.graph_walk import Graph, drive

OK, FAILED, REFUSED, SKIPPED, CANCELLED, WAITING = (
    StepState.SUCCEEDED,
    StepState.FAILED,
    StepState.REFUSED,
    StepState.SKIPPED,
    StepState.CANCELLED,
    StepState.WAITING,
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


def at_the_end(needs: dict[str, frozenset[str]], *, on_failure: str = "continue", **when: str) -> Graph:
    return Graph(dependencies=needs, when=when, on_failure=on_failure)  # type: ignore[arg-type]  # its literals


async def test_a_step_that_always_runs_does_so_after_a_failure_and_after_what_was_left_out() -> None:
    steps = Recorder({"a": FAILED})
    walk = at_the_end(graph(a="", b="a", tidy="a b", after="tidy"), tidy="always")
    ended = await drive(walk, steps.call, steps.skip, parallel=4)
    assert ended == {"a": FAILED, "b": SKIPPED, "tidy": OK, "after": OK}


@pytest.mark.parametrize("bad", [FAILED, REFUSED])
async def test_a_step_for_failures_runs_where_one_failed_and_where_one_was_left_out_for_it(bad: StepState) -> None:
    steps = Recorder({"a": bad})
    walk = at_the_end(graph(a="", b="a", tell="b", other=""), tell="on_failure")
    assert await drive(walk, steps.call, steps.skip, parallel=4) == {"a": bad, "b": SKIPPED, "tell": OK, "other": OK}


async def test_a_step_for_failures_is_left_out_where_nothing_failed() -> None:
    steps = Recorder({"odd": FAILED, "dull": SKIPPED})
    walk = Graph(
        dependencies=graph(a="", odd="", dull="", of_dull="dull", tell="a odd dull of_dull", more="tell"),
        tolerant=frozenset({"odd"}),
        when={"tell": "on_failure", "more": "on_failure"},
    )
    ended = await drive(walk, steps.call, steps.skip, parallel=4)
    assert (ended["tell"], ended["more"]) == (SKIPPED, SKIPPED)
    assert steps.skipped["tell"][1] == "nothing failed of what it waits for"


async def test_what_was_left_out_since_nothing_had_failed_is_no_failure_for_what_waits_for_it() -> None:
    steps = Recorder()
    walk = at_the_end(
        graph(a="", tell="a", more="tell", b="tell", last="b"), tell="on_failure", more="on_failure", last="on_failure"
    )
    ended = await drive(walk, steps.call, steps.skip, parallel=4)
    assert ended == {"a": OK, "tell": SKIPPED, "more": SKIPPED, "b": SKIPPED, "last": SKIPPED}


async def test_a_step_at_the_end_that_its_own_condition_left_out_is_no_failure() -> None:
    steps = Recorder({"a": FAILED, "tidy": SKIPPED})
    walk = at_the_end(graph(a="", tidy="a", tell="tidy"), tidy="always", tell="on_failure")
    assert (await drive(walk, steps.call, steps.skip, parallel=4))["tell"] is SKIPPED


async def test_steps_at_the_end_are_not_cancelled_by_the_failure_that_cancels_the_others() -> None:
    steps = Recorder({"a": FAILED}, forever=frozenset({"long"}))
    needs = graph(a="", long="", later="long", tell="a long later", tidy="long")
    ended = await drive(
        at_the_end(needs, on_failure="cancel", tell="on_failure", tidy="always"), steps.call, steps.skip, parallel=4
    )
    assert ended == {"a": FAILED, "long": CANCELLED, "later": CANCELLED, "tell": OK, "tidy": OK}


async def test_a_step_at_the_end_that_is_under_way_when_another_fails_goes_on() -> None:
    began, finish = asyncio.Event(), asyncio.Event()

    async def call(step: str) -> StepState:
        if step == "tidy":
            began.set()
            await finish.wait()
        elif step == "bad":
            await began.wait()
            asyncio.get_running_loop().call_soon(finish.set)
            return FAILED
        return OK

    steps = Recorder()
    walk = at_the_end(graph(a="", bad="", tidy="a"), on_failure="cancel", tidy="always")
    assert await drive(walk, call, steps.skip, parallel=4) == {"a": OK, "bad": FAILED, "tidy": OK}


async def test_steps_at_the_end_run_after_a_cancellation_each_in_its_order() -> None:
    steps = Recorder(forever=frozenset({"long"}))
    needs = graph(long="", later="long", tell="long later", tidy="tell", usual="")
    walk = at_the_end(needs, tell="on_failure", tidy="always")
    task = asyncio.create_task(drive(walk, steps.call, steps.skip, parallel=1))
    await steps.started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [step for what, step in steps.log if what == "start"] == ["long", "tell", "tidy"]
    assert {step: state for step, (state, _) in steps.skipped.items()} == {"later": CANCELLED, "usual": CANCELLED}


async def test_a_step_at_the_end_that_is_under_way_when_the_walk_is_cancelled_goes_on() -> None:
    finish = asyncio.Event()
    began = asyncio.Event()

    async def call(step: str) -> StepState:
        if step == "tidy":
            began.set()
            await finish.wait()
        return OK

    steps = Recorder()
    task = asyncio.create_task(drive(at_the_end(graph(a="", tidy="a"), tidy="always"), call, steps.skip, parallel=2))
    await began.wait()
    task.cancel()
    await asyncio.sleep(0)
    finish.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert steps.skipped == {}


@pytest.mark.parametrize("again", [True, False])
async def test_a_step_at_the_end_of_a_cancelled_walk_has_the_grace_and_ends_at_a_second_cancellation(
    again: bool,
) -> None:
    steps = Recorder(forever=frozenset({"long", "tidy"}))
    walk = at_the_end(graph(long="", tidy="long", more="tidy"), tidy="always", more="always")
    grace = 60.0 if again else 0.05
    task = asyncio.create_task(drive(walk, steps.call, steps.skip, parallel=2, grace=grace))
    await steps.started.wait()
    steps.started.clear()
    task.cancel()
    await steps.started.wait()
    if again:
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert steps.running == 0
    assert [step for what, step in steps.log if what == "start"] == ["long", "tidy"]
    assert steps.skipped["more"][0] is CANCELLED


async def test_what_waits_for_somebody_to_agree_is_given_up_with_the_walk() -> None:
    steps = Recorder({"asked": WAITING}, forever=frozenset({"long"}))
    walk = at_the_end(graph(asked="", long="", tidy="asked long"), tidy="always")
    task = asyncio.create_task(drive(walk, steps.call, steps.skip, parallel=4))
    await steps.started.wait()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert steps.skipped == {"asked": (CANCELLED, "the run was cancelled")}
    assert ("start", "tidy") in steps.log


async def test_an_error_that_ends_the_walk_lets_nothing_begin_at_the_end() -> None:
    steps = Recorder()

    async def call(step: str) -> StepState:
        if step == "broken":
            raise RuntimeError("the ledger is gone")
        return await steps.call(step)

    with pytest.raises(RuntimeError, match="ledger"):
        await drive(at_the_end(graph(broken="", tidy="broken"), tidy="always"), call, steps.skip, parallel=4)
    assert steps.log == []
    assert steps.skipped["tidy"][0] is CANCELLED


async def test_an_error_in_a_step_at_the_end_of_a_cancelled_walk_leaves_nothing_running() -> None:
    steps = Recorder(forever=frozenset({"long", "other"}))

    async def call(step: str) -> StepState:
        if step == "tidy":
            raise RuntimeError("the ledger is gone")
        return await steps.call(step)

    walk = at_the_end(graph(long="", tidy="long", other="long"), tidy="always", other="always")
    task = asyncio.create_task(drive(walk, call, steps.skip, parallel=4))
    await steps.started.wait()
    task.cancel()
    with pytest.raises(RuntimeError, match="ledger"):
        await task
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
        when=data.draw(st.dictionaries(st.sampled_from(names), st.sampled_from(["on_failure", "always"]))),
    )
    steps = Recorder(ends)
    ended = asyncio.run(drive(walk, steps.call, steps.skip, parallel=data.draw(st.integers(1, 4))))
    assert ended.keys() == set(names)
    ran = [step for what, step in steps.log if what == "start"]
    assert len(ran) == len(set(ran))
    assert set(ran) | set(steps.skipped) == set(names)
    for step in ran:
        before = steps.log[: steps.log.index(("start", step))]
        assert all(("end", needed) in before or needed in steps.skipped for needed in needs[step])
        if walk.on_success(step):
            assert all(ended[needed] is OK or needed in walk.tolerant for needed in needs[step])
    for step in names:
        if walk.when.get(step) == "on_failure":
            assert (step in ran) is any(at_fault(walk, needed, ended) for needed in needs[step])
    for step in steps.skipped:
        assert walk.when.get(step) != "always"


def at_fault(walk: Graph, step: str, ended: Mapping[str, StepState]) -> bool:
    """Whether the step, or what it was left out for, ended otherwise than well."""
    if ended[step] is SKIPPED:
        return walk.on_success(step) and any(at_fault(walk, each, ended) for each in walk.dependencies[step])
    return ended[step] is CANCELLED or (ended[step] in (FAILED, REFUSED) and step not in walk.tolerant)


class TestOnFailureBehindOneThatIsLeftOut:
    """`both` is left out as soon as `idle` is, which runs on failure and has nothing to do; `late` ends after that."""

    @pytest.mark.parametrize(("late", "then"), [(OK, SKIPPED), (FAILED, OK)])
    @pytest.mark.parametrize("parallel", [1, 4])
    async def test_it_waits_until_all_is_known(self, late: StepState, then: StepState, parallel: int) -> None:
        steps = Recorder({"late": late})
        walk = at_the_end(
            graph(idle="", both="idle late", tell="both", first="", late="first"), idle="on_failure", tell="on_failure"
        )
        ended = await drive(walk, steps.call, steps.skip, parallel=parallel)
        assert ended == {"idle": SKIPPED, "both": SKIPPED, "first": OK, "late": late, "tell": then}

    async def test_it_is_left_alone_for_one_that_waits(self) -> None:
        steps = Recorder({"late": WAITING})
        walk = at_the_end(graph(idle="", both="idle late", tell="both", late=""), idle="on_failure", tell="on_failure")
        ended = await drive(walk, steps.call, steps.skip, parallel=4)
        assert ended == {"idle": SKIPPED, "both": SKIPPED, "late": WAITING}
        again = Recorder({"late": FAILED})
        already = {step: state for step, state in ended.items() if state is not WAITING}
        ended = await drive(walk, again.call, again.skip, parallel=4, already=already)
        assert (ended["late"], ended["tell"]) == (FAILED, OK)

    async def test_so_many_ways_to_it_are_each_gone_once(self) -> None:
        layers = {"idle": ""} | {
            f"{side}{n}": f"a{n - 1} b{n - 1}" if n else "idle" for n in range(60) for side in "ab"
        }
        walk = at_the_end(graph(**layers, tell="a59 b59"), idle="on_failure", tell="on_failure")
        ended = await drive(walk, Recorder().call, Recorder().skip, parallel=4)
        assert set(ended.values()) == {SKIPPED}


def above(needs: Mapping[str, frozenset[str]], step: str) -> set[str]:
    """Everything that the step needs, directly or not."""
    return set(needs[step]).union(*(above(needs, each) for each in needs[step]))


class TestWaiting:
    """Steps that somebody has to agree to first: they end the walk without having ended themselves."""

    @pytest.mark.parametrize("parallel", [1, 4])
    async def test_what_needs_it_is_not_touched_and_what_does_not_goes_on(self, parallel: int) -> None:
        steps = Recorder({"a": WAITING})
        walk = Graph(dependencies=graph(a="", b="a", c="b", both="a other", other="", last="other"))
        assert await drive(walk, steps.call, steps.skip, parallel=parallel) == {"a": WAITING, "other": OK, "last": OK}
        assert sorted(step for what, step in steps.log if what == "start") == ["a", "last", "other"]
        assert steps.skipped == {}

    async def test_its_place_is_free_for_others(self) -> None:
        steps = Recorder({"a": WAITING, "b": WAITING})
        walk = Graph(dependencies=graph(a="", b="", c="", d="c"))
        assert (await drive(walk, steps.call, steps.skip, parallel=1))["d"] is OK
        assert steps.most_at_once == 1

    async def test_a_walk_of_nothing_else_ends(self) -> None:
        steps = Recorder({"a": WAITING})
        assert await drive(Graph(dependencies=graph(a="")), steps.call, steps.skip, parallel=1) == {"a": WAITING}

    async def test_what_needs_a_failed_one_as_well_is_skipped_and_what_needs_that_too(self) -> None:
        steps = Recorder({"a": WAITING, "bad": FAILED})
        walk = Graph(dependencies=graph(a="", bad="", both="a bad", last="both", b="a"))
        ended = await drive(walk, steps.call, steps.skip, parallel=4)
        assert ended == {"a": WAITING, "bad": FAILED, "both": SKIPPED, "last": SKIPPED}
        assert "needs `bad`" in steps.skipped["both"][1]

    async def test_a_tolerated_failure_beside_it_changes_nothing_even_if_failures_cancel(self) -> None:
        steps = Recorder({"a": WAITING, "bad": FAILED})
        walk = Graph(
            dependencies=graph(a="", bad="", b="a", c="bad"), tolerant=frozenset({"bad", "a"}), on_failure="cancel"
        )
        assert await drive(walk, steps.call, steps.skip, parallel=1) == {"a": WAITING, "bad": FAILED, "c": OK}
        assert steps.skipped == {}

    @pytest.mark.parametrize("order", ["a bad", "bad a"])
    @pytest.mark.parametrize("parallel", [1, 2])
    async def test_a_failure_that_cancels_cancels_it_and_what_needs_it(self, order: str, parallel: int) -> None:
        steps = Recorder({"a": WAITING, "bad": FAILED})
        needs = {**dict.fromkeys(order.split(), frozenset[str]()), **graph(b="a", c="b")}
        ended = await drive(Graph(dependencies=needs, on_failure="cancel"), steps.call, steps.skip, parallel=parallel)
        assert ended == {"a": CANCELLED, "bad": FAILED, "b": CANCELLED, "c": CANCELLED}
        assert steps.skipped == dict.fromkeys("abc", (CANCELLED, "another step failed"))

    async def test_one_that_says_that_it_waits_when_it_is_cancelled_is_cancelled(self) -> None:
        """It was about to be left waiting when another one failed."""
        steps = Recorder({"bad": FAILED})

        async def call(step: str) -> StepState:
            if step == "a":
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.Event().wait()
                return WAITING
            return await steps.call(step)

        walk = Graph(dependencies=graph(a="", bad="", b="a"), on_failure="cancel")
        assert await drive(walk, call, steps.skip, parallel=2) == {"a": CANCELLED, "bad": FAILED, "b": CANCELLED}
        assert steps.skipped["a"] == (CANCELLED, "another step failed")

    async def test_a_cancelled_walk_cancels_it_and_what_needs_it(self) -> None:
        steps = Recorder({"a": WAITING}, forever=frozenset({"long"}))
        needs = graph(a="", b="a", long="", later="long")
        walk = asyncio.create_task(drive(Graph(dependencies=needs), steps.call, steps.skip, parallel=1))
        while ("start", "long") not in steps.log:
            await asyncio.sleep(0)
        walk.cancel()
        with pytest.raises(asyncio.CancelledError):
            await walk
        assert steps.running == 0
        assert steps.skipped == dict.fromkeys(("a", "b", "later"), (CANCELLED, "the run was cancelled"))

    async def test_what_ended_in_an_earlier_process_is_neither_run_nor_recorded_again(self) -> None:
        steps = Recorder({"d": WAITING})
        walk = Graph(dependencies=graph(a="", bad="", b="a", c="bad", d="a", e="d"))
        ended = await drive(walk, steps.call, steps.skip, parallel=4, already={"a": OK, "bad": FAILED})
        assert ended == {"a": OK, "bad": FAILED, "b": OK, "c": SKIPPED, "d": WAITING}
        assert sorted(step for what, step in steps.log if what == "start") == ["b", "d"]
        assert set(steps.skipped) == {"c"}

    async def test_it_goes_on_in_a_later_walk(self) -> None:
        walk = Graph(dependencies=graph(a="", b="a", c="b"))
        first, second = Recorder({"b": WAITING}), Recorder()
        left = await drive(walk, first.call, first.skip, parallel=4)
        already = {step: state for step, state in left.items() if state is not WAITING}
        ended = await drive(walk, second.call, second.skip, parallel=4, already=already)
        assert ended == dict.fromkeys("abc", OK)
        assert [step for what, step in second.log if what == "start"] == ["b", "c"]

    @given(st.data())
    def test_every_step_of_any_graph_ends_or_waits_or_is_left_alone_for_one_that_does(
        self, data: st.DataObject
    ) -> None:
        names = [f"s{n}" for n in range(data.draw(st.integers(1, 8)))]
        needs = {
            name: frozenset(data.draw(st.lists(st.sampled_from(names[:index]), max_size=3))) if index else frozenset()
            for index, name in enumerate(names)
        }
        ends = {name: data.draw(st.sampled_from([OK, OK, FAILED, REFUSED, WAITING, WAITING])) for name in names}
        walk = Graph(
            dependencies={name: needs[name] for name in data.draw(st.permutations(names))},
            tolerant=frozenset(data.draw(st.lists(st.sampled_from(names)))),
            on_failure=data.draw(st.sampled_from(["continue", "cancel"])),
        )
        steps = Recorder(ends)

        async def within_time() -> dict[str, StepState]:
            async with asyncio.timeout(20):
                return await drive(walk, steps.call, steps.skip, parallel=data.draw(st.integers(1, 4)))

        ended = asyncio.run(within_time())
        waiting = {step for step, state in ended.items() if state is WAITING}
        untouched = set(names) - ended.keys()
        ran = [step for what, step in steps.log if what == "start"]
        assert len(ran) == len(set(ran))
        assert untouched.isdisjoint({*ran, *steps.skipped})
        assert waiting <= {step for step in ran if ends[step] is WAITING} - set(steps.skipped)
        for step in untouched:
            assert above(needs, step) & waiting
        for step in ran:
            assert all(ended[needed] is OK or needed in walk.tolerant for needed in needs[step])
        for step, (state, _) in steps.skipped.items():
            assert ended[step] is state
            assert step not in ran or (state is CANCELLED and ends[step] is WAITING)
        bad = [step for step in ran if ended[step] in (FAILED, REFUSED) and step not in walk.tolerant]
        if walk.on_failure == "cancel" and bad:
            assert not waiting
            assert not untouched
