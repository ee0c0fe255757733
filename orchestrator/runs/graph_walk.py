"""Walking the graph of a workflow: which step may start, which is skipped, when the walk ends.

Nothing here knows what a step does. The same walk serves every engine: it is given a coroutine
function that carries out one step, and answers how each step ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any, Literal

from orchestrator.ledger.states import StepState

CallStep = Callable[[str], Coroutine[Any, Any, StepState]]
Skip = Callable[[str, StepState, str], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """The steps in declaration order with the steps that each waits for.

    `tolerant` are the steps whose failure does not hold their dependents back (`continue_on_error`).
    """

    dependencies: Mapping[str, frozenset[str]]
    tolerant: frozenset[str] = frozenset()
    on_failure: Literal["continue", "cancel"] = "continue"


async def drive(
    graph: Graph, call: CallStep, skip: Skip, *, parallel: int, already: Mapping[str, StepState] | None = None
) -> dict[str, StepState]:
    """Carry out the graph with at most `parallel` steps at once, and return how each step ended.

    `already` are the steps that ended before, in an earlier process.
    `call(step)` runs a step and returns its final state; it raises only to end the whole walk. A step may also be left
    WAITING: what needs it is not touched then, and the walk ends when nothing else can be done.
    `skip(step, state, reason)` records a step that will not run. When the walk itself is cancelled
    the running steps are cancelled and awaited, and what never started is recorded as cancelled.
    """
    ended: dict[str, StepState] = dict(already or {})
    parked: list[str] = []
    running: dict[asyncio.Task[StepState], str] = {}
    waiting = _Waiting(graph, ended)
    cancelling = False
    try:
        while waiting or running:
            while len(running) < parallel and (step := waiting.next()) is not None:
                reason = "another step failed" if cancelling else _hindrance(graph, step, ended)
                if reason:
                    ended[step] = StepState.CANCELLED if cancelling else StepState.SKIPPED
                    waiting.ended(step)
                    await skip(step, ended[step], reason)
                else:
                    running[asyncio.create_task(call(step), name=f"step {step}")] = step
            if not running:
                break  # nothing can start, nothing goes on: the rest needs what waits
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                step = running.pop(task)
                state = StepState.CANCELLED if task.cancelled() else task.result()
                if state is StepState.WAITING:
                    parked.append(step)
                    continue
                ended[step] = state
                waiting.ended(step)
                if graph.on_failure == "cancel" and _failed(graph, step, ended[step]) and not cancelling:
                    cancelling = True
                    for other in running:
                        other.cancel("another step failed")
            if cancelling:
                await _give_up(parked, ended, waiting, skip)
    except BaseException:
        await _cancel_all(running)
        for step in (*parked, *waiting):
            await skip(step, StepState.CANCELLED, "the run was cancelled")
        raise
    return {**ended, **dict.fromkeys(parked, StepState.WAITING)}


async def _give_up(parked: list[str], ended: dict[str, StepState], waiting: _Waiting, skip: Skip) -> None:
    """Of a run that another step has ended nothing waits any more."""
    while parked:
        step = parked.pop()
        ended[step] = StepState.CANCELLED
        waiting.ended(step)
        await skip(step, StepState.CANCELLED, "another step failed")


class _Waiting:
    """The steps that have neither started nor been skipped, and which of them are next.

    A step is looked at again only when one that it waits for has ended, so a walk costs as much as its graph has
    edges. `ended` is the walk's own record of how steps ended.
    """

    def __init__(self, graph: Graph, ended: Mapping[str, StepState]) -> None:
        self._graph = graph
        self._ended = ended
        self._steps = [step for step in graph.dependencies if step not in ended]
        self._place = {step: place for place, step in enumerate(self._steps)}
        self._dependents: dict[str, list[str]] = {}
        for step in self._steps:
            for needed in graph.dependencies[step]:
                self._dependents.setdefault(needed, []).append(step)
        self._ready: list[int] = []
        for step in self._steps:
            self._consider(step, hindered=bool(_hindrance(graph, step, ended)))

    def __len__(self) -> int:
        return len(self._place)

    def __iter__(self) -> Iterator[str]:
        """Those that are left, in the order of their declaration."""
        return iter(self._place)

    def next(self) -> str | None:
        """Take out the first step in the order of declaration that may start or can never run, if there is any."""
        while self._ready:
            step = self._steps[heappop(self._ready)]
            if self._place.pop(step, None) is not None:
                return step
        return None

    def ended(self, step: str) -> None:
        """Look again at the steps that wait for this one, of which the walk has recorded how it ended."""
        hindered = _hinders(self._graph, step, self._ended[step])
        for dependent in self._dependents.get(step, ()):
            self._consider(dependent, hindered=hindered)

    def _consider(self, step: str, *, hindered: bool) -> None:
        if step in self._place and (hindered or self._graph.dependencies[step] <= self._ended.keys()):
            heappush(self._ready, self._place[step])


def _failed(graph: Graph, step: str, state: StepState) -> bool:
    return state in (StepState.FAILED, StepState.REFUSED) and _hinders(graph, step, state)


def _hinders(graph: Graph, step: str, state: StepState) -> bool:
    """Whether what waits for the step can never run, now that it has ended like this."""
    if state in (StepState.FAILED, StepState.REFUSED):
        return step not in graph.tolerant
    return state is not StepState.SUCCEEDED


def _hindrance(graph: Graph, step: str, ended: Mapping[str, StepState]) -> str:
    """Why the step can never run, or an empty text."""
    for needed in sorted(graph.dependencies[step] & ended.keys()):
        if _hinders(graph, needed, ended[needed]):
            how = "failed" if ended[needed] is StepState.FAILED else f"was {ended[needed].value}"
            return f"needs `{needed}`, which {how}"
    return ""


async def _cancel_all(running: Mapping[asyncio.Task[StepState], str]) -> None:
    """Cancel every running step and wait for its clean-up, however often we are cancelled meanwhile."""
    for task in running:
        task.cancel()
    pending = set(running)
    while pending:
        try:
            _, pending = await asyncio.wait(pending)
        except asyncio.CancelledError:
            pending = {task for task in pending if not task.done()}
    for task in running:
        if not task.cancelled():
            task.exception()
