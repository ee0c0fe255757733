"""Walking the graph of a workflow: which step may start, which is skipped, when the walk ends.

Nothing here knows what a step does. The walk is given a coroutine function that carries out one step, and
answers how each step ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any, Literal

from orchestrator.ledger.states import StepState
from orchestrator.workflow.models.steps import When

CallStep = Callable[[str], Coroutine[Any, Any, StepState]]
Skip = Callable[[str, StepState, str], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """The steps in declaration order with the steps that each waits for.

    `tolerant` are the steps whose failure does not hold their dependents back (`continue_on_error`). `when` has the
    steps that do not run on success alone; these are not cancelled with the others.
    """

    dependencies: Mapping[str, frozenset[str]]
    tolerant: frozenset[str] = frozenset()
    on_failure: Literal["continue", "cancel"] = "continue"
    when: Mapping[str, When] = field(default_factory=dict)

    def on_success(self, step: str) -> bool:
        """Whether the step runs only where all that it waits for succeeded."""
        return self.when.get(step, "on_success") == "on_success"

    def awaited(self, step: str) -> frozenset[str]:
        """The steps that have to end before it is known whether this one runs.

        One that runs on failure waits also for what could have kept what it needs from running: a step is left out as
        soon as one of those that it needs is, and another one of them may still fail.
        """
        if self.when.get(step) != "on_failure":
            return self.dependencies[step]
        awaited: set[str] = set()
        left = [step]
        while left:
            new = self.dependencies[left.pop()] - awaited
            awaited |= new
            left += [each for each in new if self.on_success(each)]
        return frozenset(awaited)


async def drive(
    graph: Graph,
    call: CallStep,
    skip: Skip,
    *,
    parallel: int,
    already: Mapping[str, StepState] | None = None,
    grace: float = 30.0,
) -> dict[str, StepState]:
    """Carry out the graph with at most `parallel` steps at once, and return how each step ended.

    `already` are the steps that ended before, in an earlier process.
    `call(step)` runs a step and returns its final state; it raises only to end the whole walk. A step may also be left
    WAITING: what needs it is not touched then, and the walk ends when nothing else can be done.
    `skip(step, state, reason)` records a step that will not run. When the walk itself is cancelled
    the running steps are cancelled and awaited, and what never started is recorded as cancelled; then the steps that
    run on failure, or always, have `grace` seconds, unless the walk is cancelled once more.
    """
    walk = _Walk(graph, call, skip, parallel, dict(already or {}))
    try:
        await walk.go()
    except asyncio.CancelledError:
        await walk.stop(also_at_the_end=False)
        await walk.finish(grace)
        raise
    except BaseException:
        await walk.stop(also_at_the_end=True)
        raise
    return walk.states


class _Walk:
    """One walk through a graph: what runs, what waits, and how the rest ended."""

    def __init__(self, graph: Graph, call: CallStep, skip: Skip, parallel: int, ended: dict[str, StepState]) -> None:
        self._graph = graph
        self._call = call
        self._skip = skip
        self._parallel = parallel
        self._ended = ended
        self._parked: list[str] = []
        self._running: dict[asyncio.Task[StepState], str] = {}
        self._waiting = _Waiting(graph, ended)
        self._why_not = ""
        """Why nothing new begins that runs on success alone, as soon as that is so."""

    @property
    def states(self) -> dict[str, StepState]:
        """How each step ended, or that it waits for somebody to agree."""
        return {**self._ended, **dict.fromkeys(self._parked, StepState.WAITING)}

    async def go(self) -> None:
        """Until nothing runs and nothing can start."""
        while self._waiting or self._running:
            await self._start()
            if not self._running:
                break  # nothing can start, nothing goes on: the rest needs what waits
            done, _ = await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                self._over(self._running.pop(task), StepState.CANCELLED if task.cancelled() else task.result())
            if self._why_not:
                await self._give_up_parked()

    async def _start(self) -> None:
        """Start what may, and record of what can never run that it does not."""
        while len(self._running) < self._parallel and (step := self._waiting.next()) is not None:
            cancelled = self._why_not if self._graph.on_success(step) else ""
            if reason := cancelled or _hindrance(self._graph, step, self._ended):
                state = StepState.CANCELLED if cancelled else StepState.SKIPPED
                self._over(step, state)
                await self._skip(step, state, reason)
            else:
                self._running[asyncio.create_task(self._call(step), name=f"step {step}")] = step

    def _over(self, step: str, state: StepState) -> None:
        if state is StepState.WAITING:
            self._parked.append(step)
            return
        self._ended[step] = state
        self._waiting.ended(step)
        if self._graph.on_failure == "cancel" and _failed(self._graph, step, state) and not self._why_not:
            self._why_not = "another step failed"
            for task, other in self._running.items():
                if self._graph.on_success(other):
                    task.cancel(self._why_not)

    async def _give_up_parked(self) -> None:
        """Of a walk in which nothing new begins nothing waits any more."""
        while self._parked:
            step = self._parked.pop()
            self._over(step, StepState.CANCELLED)
            await self._skip(step, StepState.CANCELLED, self._why_not)

    async def stop(self, *, also_at_the_end: bool) -> None:
        """Cancel what runs and wait for its clean-up; what has not begun is recorded as cancelled.

        Unless `also_at_the_end`, the steps that run on failure or always are left as they are.
        """
        self._why_not = "the run was cancelled"
        stopped = {
            task: step for task, step in self._running.items() if also_at_the_end or self._graph.on_success(step)
        }
        await _cancel_all(stopped)
        for task, step in stopped.items():
            del self._running[task]
            given_up = task.cancelled() or task.exception() is not None
            self._over(step, StepState.CANCELLED if given_up else task.result())
        await self._give_up_parked()
        for step in list(self._waiting):
            if also_at_the_end or self._graph.on_success(step):
                self._waiting.take(step)
                self._over(step, StepState.CANCELLED)
                await self._skip(step, StepState.CANCELLED, self._why_not)

    async def finish(self, grace: float) -> None:
        """Carry out what runs on failure or always, after the rest was stopped. Raises LedgerError."""
        if not self._waiting and not self._running:
            return
        try:
            async with asyncio.timeout(grace):
                await self.go()
        except (TimeoutError, asyncio.CancelledError):
            pass
        finally:
            await self.stop(also_at_the_end=True)


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
        self._awaited = {step: graph.awaited(step) for step in self._steps}
        self._dependents: dict[str, list[str]] = {}
        for step in self._steps:
            for needed in self._awaited[step]:
                self._dependents.setdefault(needed, []).append(step)
        self._ready: list[int] = []
        for step in self._steps:
            self._consider(step, hindered=graph.on_success(step) and bool(_hindrance(graph, step, ended)))

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

    def take(self, step: str) -> None:
        """It waits no more."""
        self._place.pop(step, None)

    def ended(self, step: str) -> None:
        """Look again at the steps that wait for this one, of which the walk has recorded how it ended."""
        hindered = _hinders(self._graph, step, self._ended[step])
        for dependent in self._dependents.get(step, ()):
            self._consider(dependent, hindered=hindered and self._graph.on_success(dependent))

    def _consider(self, step: str, *, hindered: bool) -> None:
        if step in self._place and (hindered or self._awaited[step] <= self._ended.keys()):
            heappush(self._ready, self._place[step])


def _failed(graph: Graph, step: str, state: StepState) -> bool:
    return state in (StepState.FAILED, StepState.REFUSED) and _hinders(graph, step, state)


def _hinders(graph: Graph, step: str, state: StepState) -> bool:
    """Whether what waits for the step can never run, now that it has ended like this."""
    if state in (StepState.FAILED, StepState.REFUSED):
        return step not in graph.tolerant
    return state is not StepState.SUCCEEDED


def _hindrance(graph: Graph, step: str, ended: Mapping[str, StepState]) -> str:
    """Why the step can never run, or an empty text. If it does not run on success alone, what it awaits has ended."""
    needed = graph.dependencies[step]
    match graph.when.get(step, "on_success"):
        case "always":
            return ""
        case "on_failure":
            return "" if _went_wrong(graph, needed, ended) else "nothing failed of what it waits for"
    for each in sorted(needed & ended.keys()):
        if _hinders(graph, each, ended[each]):
            how = "failed" if ended[each] is StepState.FAILED else f"was {ended[each].value}"
            return f"needs `{each}`, which {how}"
    return ""


def _went_wrong(graph: Graph, steps: Collection[str], ended: Mapping[str, StepState]) -> bool:
    """Whether one of the steps failed, was cancelled, or was left out for the sake of one that was."""
    left, seen = list(steps), set(steps)
    while left:
        step = left.pop()
        if ended[step] is not StepState.SKIPPED:
            if _hinders(graph, step, ended[step]):
                return True
        elif graph.on_success(step):
            new = graph.dependencies[step] - seen
            seen |= new
            left += new
    return False


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
