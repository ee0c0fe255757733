"""Closing tasks, and cutting agents off: what is under way ends, in whatever process it goes on."""

from __future__ import annotations

import asyncio
import logging

from orchestrator.ledger.lease import OPEN
from orchestrator.ledger.states import RunState, TaskEnd, TaskState
from orchestrator.ledger.task_events import TaskClosed
from orchestrator.ledger.types import LeaseFilter, RunRecord, TaskRecord
from orchestrator.tasks.reach import Reach

log = logging.getLogger(__name__)

CONFIRM_SECONDS = 10.0
"""How long it is waited for the confirmation that everything is gone."""

_MOST = 100_000
_UNDER_WAY = (RunState.RUNNING, RunState.WAITING)


async def close_task(reach: Reach, task_id: str, *, by: str, reason: str, seconds: float = CONFIRM_SECONDS) -> bool:
    """Close it, if it is not, and end its calls; whether nothing of it is open any more after so many seconds.

    A call that still goes on is open, too: it may have asked for nothing yet. Raises UnknownRun and LedgerError.
    """
    await reach.writer.close_task(task_id, TaskClosed(by=by, reason=reason))
    under_way = await _under_way_in(reach, task_id)
    await reach.end(list(under_way.values()), f"the task was closed: {reason}")
    ended = await reach.until_ended(list(under_way), seconds=seconds)
    return ended and not await asyncio.to_thread(reach.reader.leases, LeaseFilter(task=task_id, states=OPEN, limit=1))


async def cut_off(reach: Reach, agent: str, *, by: str, reason: str, seconds: float = CONFIRM_SECONDS) -> bool:
    """End everything of an agent that is blocked already; whether nothing of it is open after so many seconds.

    What it tries meanwhile is refused: whatever began before that is on record, and found here. Raises LedgerError.
    """
    why = f"the agent was cut off: {reason}" if reason else "the agent was cut off"
    tasks = await asyncio.to_thread(lambda: reach.reader.tasks(agent=agent, state=TaskState.OPEN, limit=_MOST))
    for task in tasks:
        await reach.writer.close_task(task.task_id, TaskClosed(by=by, reason=why))
    under_way = {each.run_id: each for each in await asyncio.to_thread(reach.reader.under_way, agent)}
    for task in tasks:  # a call to which somebody has agreed waits for its agent, and for nobody else
        under_way |= await _under_way_in(reach, task.task_id)
    await reach.end(list(under_way.values()), why)
    ended = await reach.until_ended(list(under_way), seconds=seconds)
    return ended and not await asyncio.to_thread(reach.reader.leases, LeaseFilter(agent=agent, states=OPEN, limit=1))


async def _under_way_in(reach: Reach, task_id: str) -> dict[str, RunRecord]:
    """The calls of a task that go on or wait, by id."""
    calls = await asyncio.to_thread(reach.reader.calls, task_id)
    return {each.run_id: each for each in calls if each.state in _UNDER_WAY}


_WHY = {
    TaskEnd.DEADLINE: "its deadline has passed",
    TaskEnd.IDLE: "nothing was called in it for too long",
    TaskEnd.CUT_OFF: "the agent was cut off",
}


async def close_what_is_over(reach: Reach) -> list[TaskRecord]:
    """Close the tasks that are over, and end the calls that go on in closed ones. Safe beside others who do so.

    Returns those that this closed; what is under way in them is told to end, and not waited for. Raises LedgerError.
    """
    closed = []
    strays: dict[str, RunRecord] = {}
    for task, end in await asyncio.to_thread(reach.reader.tasks_over, reach.clock.now()):
        if await reach.writer.close_task(task.task_id, TaskClosed(by=end.value, reason=_WHY[end])):
            closed.append(task)
            strays |= await _under_way_in(reach, task.task_id)
    strays |= {each.run_id: each for each in await asyncio.to_thread(reach.reader.stray_calls)}
    await reach.end(list(strays.values()), "the task is closed")
    return closed
