"""The schedules of a folder as people want to see them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Protocol

from orchestrator.grants.fields import format_duration
from orchestrator.ledger.coordination.schedules import ScheduleState
from orchestrator.scheduling.fires import Fire
from orchestrator.scheduling.overlap import next_due
from orchestrator.workflow.models.workflow import Schedule


class Scheduled(Protocol):
    """A workflow that may have a schedule."""

    @property
    def schedule(self) -> Schedule | None:
        """When it is due; None for a workflow that nothing schedules."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleLine:
    """One scheduled workflow. `state` is `active`, `paused`, `disabled`, `new` (no scheduler has seen it yet)
    or `not in folder`; `handled` is the time up to which everything was started or skipped."""

    workflow: str
    when: str
    timezone: str
    overlap: str
    catch_up: str
    state: str
    next: datetime | None
    handled: datetime | None
    requested: datetime | None


def overview(
    workflows: Mapping[str, Scheduled], states: Iterable[ScheduleState], now: datetime
) -> Sequence[ScheduleLine]:
    """Every scheduled workflow of a folder, and what the ledger knows besides, by name."""
    known = {state.workflow: state for state in states}
    lines = []
    for name in sorted(workflows.keys() | known.keys()):
        found, state = workflows.get(name), known.get(name)
        schedule = found.schedule if found else None
        if schedule is None and state is None:
            continue
        coming = upcoming(schedule, name, now, 1) if schedule and not (state and state.paused) else ()
        lines.append(
            ScheduleLine(
                workflow=name,
                when=when(schedule),
                timezone=schedule.timezone if schedule and schedule.cron else "",
                overlap=schedule.overlap if schedule else "",
                catch_up=schedule.catch_up if schedule else "",
                state=_state(found is not None, schedule, state),
                next=coming[0].due if coming else None,
                handled=state.handled if state else None,
                requested=state.requested if state else None,
            )
        )
    return lines


def upcoming(schedule: Schedule, workflow: str, after: datetime, count: int) -> Sequence[Fire]:
    """The next fires of a workflow, oldest first; none if it is not enabled."""

    def fires() -> Iterable[Fire]:
        at = after
        while (fire := next_due(schedule, workflow, after=at)) is not None:
            yield fire
            at = fire.at

    return tuple(islice(fires(), count))


def when(schedule: Schedule | None) -> str:
    """`0 7 * * 1-5` or `every 15m`, with its jitter."""
    if schedule is None:
        return ""
    text = schedule.cron or f"every {format_duration(schedule.every or 0)}"
    return f"{text} +{format_duration(schedule.jitter)}" if schedule.jitter else text


def _state(present: bool, schedule: Schedule | None, state: ScheduleState | None) -> str:
    if not present:
        return "not in folder"
    if state is not None and state.paused:
        return "paused"
    if schedule is None:
        return "unscheduled"
    if not schedule.enabled:
        return "disabled"
    return "active" if state else "new"
