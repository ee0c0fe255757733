"""The work for a workflow grows with its steps and their dependencies, not with their square: counted, not timed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from orchestrator.actions.catalog import action, catalog
from orchestrator.planning.graph import execution_order
from orchestrator.planning.lint import lint
from orchestrator.planning.plan import build
from orchestrator.workflow.dependencies import find_cycle, raw_dependencies
from orchestrator.workflow.loader import load_text
from orchestrator.workflow.problems import InvalidWorkflow


class Counted(str):
    """A name that counts how often it is looked up or compared."""

    __slots__ = ()
    looks = 0

    def __hash__(self) -> int:
        Counted.looks += 1
        return super().__hash__()

    def __eq__(self, other: object) -> bool:
        Counted.looks += 1
        return super().__eq__(other)

    def __lt__(self, other: str) -> bool:
        Counted.looks += 1
        return super().__lt__(other)


def chain(place: int, size: int) -> list[int]:
    return [place - 1] if place else []


def backwards(place: int, size: int) -> list[int]:
    return [place + 1] if place < size - 1 else []


def wide(place: int, size: int) -> list[int]:
    return []


def all_after_the_first(place: int, size: int) -> list[int]:
    return [0] if place else []


def the_last_after_all(place: int, size: int) -> list[int]:
    return list(range(size - 1)) if place == size - 1 else []


def several_before(place: int, size: int) -> list[int]:
    return list(range(max(0, place - 6), place))


def several_behind(place: int, size: int) -> list[int]:
    return list(range(place + 1, min(size, place + 6)))


SHAPES = [chain, backwards, wide, all_after_the_first, the_last_after_all, several_before, several_behind]
Shape = Callable[[int, int], list[int]]


def looks(shape: Shape, size: int) -> int:
    names = [Counted(f"s{place:05}") for place in range(size)]
    steps = {name: {"needs": [names[each] for each in shape(place, size)]} for place, name in enumerate(names)}
    Counted.looks = 0
    graph = raw_dependencies(steps)
    assert find_cycle(graph) == []
    order = execution_order(graph)
    counted = Counted.looks
    places = {name: place for place, name in enumerate(order)}
    assert len(order) == size
    assert all(places[needed] < places[step] for step, waits in graph.items() for needed in waits)
    return counted


@pytest.mark.parametrize("shape", SHAPES)
def test_the_order_of_steps_takes_work_in_proportion(shape: Shape) -> None:
    assert looks(shape, 4_000) < 2.5 * looks(shape, 2_000)


def test_a_cycle_of_many_steps_is_found() -> None:
    size = 20_000
    graph = {f"s{place}": frozenset([f"s{(place + 1) % size}"]) for place in range(size)}
    cycle = find_cycle(graph)
    assert len(cycle) == size + 1
    assert cycle[0] == cycle[-1] == "s0"


def calls(work: Callable[[], object]) -> int:
    """How many functions of Python are called, comprehensions and generators included."""
    counted = 0

    def count(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal counted
        counted += 1

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return counted


def text(shape: Shape, size: int, *, more: str = "") -> str:
    lines = ["version: 1", "name: w", "agent: a", "steps:"]
    for place in range(size):
        needs = ", ".join(f"s{each}" for each in shape(place, size))
        lines.append(f"  s{place}: {{ action: exec, needs: [{needs}], with: {{ command: [a{more}] }} }}")
    return "\n".join(lines)


def validated_and_planned(written: str) -> None:
    loaded = load_text(written, filename="w.yaml", actions=catalog)
    lint(loaded)
    build(loaded, {}, action=action, endpoints={})


@pytest.mark.parametrize("shape", [backwards, the_last_after_all, several_before])
def test_validate_and_plan_take_work_in_proportion(shape: Shape) -> None:
    validated_and_planned(text(shape, 2))
    small, large = (calls(lambda size=size: validated_and_planned(text(shape, size))) for size in (100, 200))
    assert large < 2.3 * small


def test_what_is_wrong_in_every_step_takes_work_in_proportion_too() -> None:
    def refused(size: int) -> None:
        with pytest.raises(InvalidWorkflow):
            load_text(text(lambda place, size: [size + place], size), filename="w.yaml", actions=catalog)

    refused(2)
    small, large = (calls(lambda size=size: refused(size)) for size in (150, 300))
    assert large < 2.3 * small


def test_yaml_is_read_once_for_all_that_is_said_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator.workflow import loader

    parsed: list[str] = []

    def parse(written: str, filename: str) -> Any:
        parsed.append(filename)
        return whole(written, filename)

    whole = loader.parse
    monkeypatch.setattr(loader, "parse", parse)
    written = text(wide, 5).replace(
        "{ action: exec", "{ timeout: 1s, grants: { s: { kind: secret, path: a, keys: [b] } }, action: exec"
    )
    loaded = load_text(written, filename="once.yaml", actions=catalog)
    assert len(lint(loaded)) >= 5
    assert parsed == ["once.yaml"]
    again = load_text(written, filename="once.yaml", actions=catalog)
    assert again == loaded
