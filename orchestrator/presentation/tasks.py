"""One task with everything that belongs to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.jsontypes import JsonObject
from orchestrator.ledger.lease import OPEN
from orchestrator.ledger.states import RunState
from orchestrator.ledger.types import EventRecord, LeaseFilter, LeaseRecord, LedgerReader, RunRecord, TaskRecord

if TYPE_CHECKING:
    from orchestrator.workflow.models.tools import Tool


@dataclass(frozen=True, slots=True)
class Budget:
    """How much of what a tool may be used is spent; a limit is None where there is none, or it is not known."""

    tool: str
    calls: int
    max_calls: int | None
    open: int
    max_open: int | None


@dataclass(frozen=True, slots=True)
class TaskStory:
    """A task with everything that belongs to it. `broken` is the first event whose hash does not fit, if any."""

    task: TaskRecord
    opened: JsonObject
    budgets: Sequence[Budget]
    limits_unknown: str
    """Why the file with the limits cannot be read; empty where it was."""
    calls: Sequence[RunRecord]
    leases: Sequence[LeaseRecord]
    events: Sequence[EventRecord]
    broken: int | None

    @classmethod
    def read(
        cls, reader: LedgerReader, task: TaskRecord, tools: Mapping[str, Tool], limits_unknown: str = ""
    ) -> TaskStory:
        """Leases are those that are open; `tools` are those of the file with which the task was opened."""
        events, calls = reader.events(task.task_id), reader.calls(task.task_id)
        return cls(
            task=task,
            opened=events[0].data if events else {},
            budgets=[_budget(name, tools.get(name), calls) for name in task.tools],
            limits_unknown=limits_unknown,
            calls=calls,
            leases=reader.leases(LeaseFilter(task=task.task_id, states=OPEN, limit=100_000)),
            events=events,
            broken=reader.verify(task.task_id),
        )


def _budget(name: str, tool: Tool | None, calls: Sequence[RunRecord]) -> Budget:
    """Every call counts, however it ended; open are those that go on or wait."""
    states = [call.state for call in calls if call.steps == (name,)]
    under_way = sum(state in (RunState.RUNNING, RunState.WAITING) for state in states)
    limits = (None, None) if tool is None else (tool.max_calls, tool.max_open)
    return Budget(name, len(states), limits[0], under_way, limits[1])
