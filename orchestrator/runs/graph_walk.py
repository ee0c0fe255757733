"""Walking the graph of a workflow: which step may start, which is skipped, when the walk ends.

Nothing here knows what a step does. The same walk serves every engine: it is given a coroutine
function that carries out one step, and answers how each step ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.ledger.events import StepState

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
    `call(step)` runs a step and returns its final state; it raises only to end the whole walk.
    `skip(step, state, reason)` records a step that will not run. When the walk itself is cancelled
    the running steps are cancelled and awaited, and what never started is recorded as cancelled.
    """
    ended: dict[str, StepState] = dict(already or {})
    running: dict[asyncio.Task[StepState], str] = {}
    waiting = [step for step in graph.dependencies if step not in ended]
    cancelling = False
    try:
        while waiting or running:
            hindering = {step for step, state in ended.items() if state is not StepState.SUCCEEDED}
            for step in list(waiting):
                if len(running) >= parallel:
                    break
                needed = graph.dependencies[step]
                reason = "" if hindering.isdisjoint(needed) else _hindrance(graph, step, ended)
                if cancelling or reason:
                    waiting.remove(step)
                    hindering.add(step)
                    ended[step] = StepState.CANCELLED if cancelling else StepState.SKIPPED
                    await skip(step, ended[step], "another step failed" if cancelling else reason)
                elif needed <= ended.keys():
                    waiting.remove(step)
                    running[asyncio.create_task(call(step), name=f"step {step}")] = step
            if not running:
                continue
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                step = running.pop(task)
                ended[step] = StepState.CANCELLED if task.cancelled() else task.result()
                if graph.on_failure == "cancel" and _failed(graph, step, ended[step]) and not cancelling:
                    cancelling = True
                    for other in running:
                        other.cancel("another step failed")
    except BaseException:
        await _cancel_all(running)
        for step in waiting:
            await skip(step, StepState.CANCELLED, "the run was cancelled")
        raise
    return ended


def _failed(graph: Graph, step: str, state: StepState) -> bool:
    return state in (StepState.FAILED, StepState.REFUSED) and step not in graph.tolerant


def _hindrance(graph: Graph, step: str, ended: Mapping[str, StepState]) -> str:
    """Why the step can never run, or an empty text."""
    for needed in sorted(graph.dependencies[step]):
        state = ended.get(needed)
        if state is None or state is StepState.SUCCEEDED:
            continue
        if needed in graph.tolerant and state in (StepState.FAILED, StepState.REFUSED):
            continue
        return (
            f"needs `{needed}`, which was {state.value}"
            if state is not StepState.FAILED
            else (f"needs `{needed}`, which failed")
        )
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
