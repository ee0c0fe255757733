"""Whether a tool may be called now, by what the ledger says of its task."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import BindParameter, Select, func, select

from orchestrator.errors import BudgetSpent, TaskEnded
from orchestrator.ledger.states import RunState, TaskState
from orchestrator.ledger.storage.tables import IS_RUNNING, run
from orchestrator.ledger.storage.times import text_to_time
from orchestrator.ledger.types import CallLimits

UNDER_WAY = frozenset({RunState.RUNNING.value, RunState.WAITING.value})
"""The states of calls that are open: they work, hold a credential, or wait for somebody to agree."""


Row = Mapping[str, Any]


def calls_by_state(task_id: str | BindParameter[str]) -> Select[tuple[object, ...]]:
    """The calls of a task by tool and state: how many, and when the last one began and ended."""
    counted = (
        run.c.steps,
        run.c.state,
        func.count().label("calls"),
        func.max(run.c.started_at).label("began"),
        func.max(run.c.finished_at).label("ended"),
    )
    return select(*counted).where(run.c.task == task_id, run.c.run_id != task_id).group_by(run.c.steps, run.c.state)


def open_calls(agent: str | BindParameter[str]) -> Select[int]:
    """How many calls of an agent go on, over all its tasks. Those that wait for an approval hold nothing."""
    these = (IS_RUNNING, run.c.task.is_not(None), run.c.agent == agent)
    return select(func.count()).select_from(run).where(*these)


def check_call(task_id: str, task: Row, calls: Sequence[Row], limits: CallLimits, *, tool: str, now: str) -> None:
    """Raise TaskEnded or BudgetSpent. `calls` are counted by tool and state; `now` is text as stored."""
    if task["state"] != TaskState.OPEN.value:
        raise TaskEnded(f"the task {task_id} is closed" + (f": {task['reason']}" if task["reason"] else ""))
    if str(task["deadline"]) <= now:
        raise TaskEnded(f"the task {task_id} is over: its deadline was {task['deadline']}")
    if is_idle(task, calls, now=now):
        raise TaskEnded(f"the task {task_id} is over: nothing was called in it for {task['idle']} s")
    name = json.dumps([tool], separators=(",", ":"))
    of_tool = [each for each in calls if each["steps"] == name]
    made = sum(int(each["calls"] or 0) for each in of_tool)
    if limits.max_calls is not None and made >= limits.max_calls:
        times = "once" if limits.max_calls == 1 else f"{limits.max_calls} times"
        raise BudgetSpent(
            f"`{tool}` may be called {times} in a task of this type, and was",
            hint="go on with what it has given, or open a new task if that is meant",
        )
    under_way = sum(int(each["calls"] or 0) for each in of_tool if each["state"] in UNDER_WAY)
    if limits.max_open is not None and under_way >= limits.max_open:
        raise BudgetSpent(
            f"as many calls of `{tool}` are open as may be at once in a task: {limits.max_open}",
            hint="wait for one to end, or give a credential back",
        )


def check_agent(agent: str, under_way: int, most: int) -> None:
    """Raise BudgetSpent where as many calls of the agent go on as may."""
    if under_way >= most:
        raise BudgetSpent(
            f"`{agent}` has as many calls open as it may at once: {most}",
            hint="wait for one to end, or give a credential back",
        )


def is_idle(task: Row, calls: Sequence[Row], *, now: str) -> bool:
    """Whether nothing was called for as long as the task allows, and nothing is under way."""
    if task["idle"] is None or any(each["state"] in UNDER_WAY for each in calls):
        return False
    times = [str(task["started_at"]), *(str(each[key]) for each in calls for key in ("began", "ended") if each[key])]
    return text_to_time(now) - text_to_time(max(times)) >= timedelta(seconds=int(task["idle"]))
