"""What is done when a schedule is due: start, wait, replace or skip, over plain data.

Two questions are asked in turn. `due` says which of the times that have come are to be run at all
(`catch_up`), `admit` what happens to one that is to be run while others are running (`overlap`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from orchestrator.runs.triggers import TRIGGER_REQUEST
from orchestrator.scheduling.fire_times import fires_between, latest_fire, next_fire
from orchestrator.scheduling.fires import Fire, scheduled
from orchestrator.workflow.models.workflow import Schedule

ON_TIME = timedelta(seconds=30)
"""A fire that is later than this was missed: nobody was scheduling when it was due."""

QUEUE_LIMIT = 100
"""Fires of one workflow that may wait; more are skipped."""


class Verdict(StrEnum):
    """What is done about a fire while other runs of its workflow go on."""

    START = "start"
    QUEUE = "queue"
    REPLACE = "replace"
    """Cancel the running ones, and start when they have ended."""
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do about one fire; `reason` is a short stable word where it is skipped."""

    fire: Fire
    verdict: Verdict
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Due:
    """The fires to be run now, oldest first, and the newest one of those that are not made up for.

    `upto` is the nominal time up to which every fire is among them or missed. `caught_up` are the
    first so many of `fires`: those that are run although they are late.
    """

    fires: tuple[Fire, ...] = ()
    caught_up: int = 0
    missed: Fire | None = None
    upto: datetime | None = None


def due(schedule: Schedule, workflow: str, *, after: datetime, now: datetime, room: int = QUEUE_LIMIT) -> Due:
    """Which fires after the nominal time `after` are to be run now, by `catch_up`.

    With `all`, at most `room` of them: the later ones stay due.
    """
    if not schedule.enabled:
        return Due()
    until = _last_due(schedule, workflow, after, now)
    if until is None:
        return Due()
    if schedule.catch_up == "all":
        if room <= 0:
            return Due()
        times = fires_between(schedule, after, until, limit=room)
        fires = tuple(scheduled(schedule, workflow, at) for at in times)
        return Due(fires, sum(_late(fire, now) for fire in fires), None, times[-1])
    last = scheduled(schedule, workflow, until)
    first = next_fire(schedule, after)
    before = scheduled(schedule, workflow, first) if first is not None and first < until else None
    if _late(last, now) and schedule.catch_up == "none":
        return Due(missed=last, upto=until)
    return Due((last,), int(_late(last, now)), before, until)


def admit(schedule: Schedule | None, fire: Fire, *, running: int, waiting: int, caught_up: bool) -> Decision:
    """What happens to a fire while `running` runs of its workflow go on and `waiting` fires wait.

    A fire that a person asked for, or that `catch_up: all` makes up for, is never skipped because
    another one runs: it waits.
    """
    overlap = schedule.overlap if schedule is not None else "queue"
    if overlap == "allow" or not (running or waiting):
        return Decision(fire, Verdict.START)
    if overlap == "replace" and fire.trigger != TRIGGER_REQUEST:
        return Decision(fire, Verdict.REPLACE)
    everyone = schedule is not None and schedule.catch_up == "all" and caught_up
    if overlap == "forbid" and fire.trigger != TRIGGER_REQUEST and not everyone:
        return Decision(fire, Verdict.SKIP, "overlap")
    if waiting >= QUEUE_LIMIT:
        return Decision(fire, Verdict.SKIP, "queue_full")
    return Decision(fire, Verdict.QUEUE)


def next_due(schedule: Schedule, workflow: str, *, after: datetime) -> Fire | None:
    """The next fire after a nominal time, or None where there is none."""
    at = next_fire(schedule, after) if schedule.enabled else None
    return None if at is None else scheduled(schedule, workflow, at)


def _last_due(schedule: Schedule, workflow: str, after: datetime, now: datetime) -> datetime | None:
    """The nominal time of the newest fire that is due: with jitter it may have come while its time has not."""
    until = now
    while (at := latest_fire(schedule, after, until)) is not None:
        if scheduled(schedule, workflow, at).due <= now:
            return at
        until = at - timedelta(microseconds=1)
    return None


def _late(fire: Fire, now: datetime) -> bool:
    return now - fire.due > ON_TIME
