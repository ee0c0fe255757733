"""When a schedule fires: a plain function of the schedule and the instant asked about.

Intervals are counted from the epoch (1970-01-01T00:00Z), so that a restart does not shift them. Cron
expressions follow Debian's cron (crontab(5), cron(8)) where clocks change, as `cronsim` does:

- A job at fixed hours (neither minute nor hour begins with `*`) whose time is left out when clocks go
  forward fires once, right after the gap; several such times in the gap are one. A time that comes
  twice when clocks go back fires the first time only.
- Any other job follows the elapsed time: it fires neither in the gap nor too seldom in the hour that
  is repeated.

Six fields are the five with seconds in front: the same minutes, at each of these seconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from itertools import islice, takewhile
from zoneinfo import ZoneInfo

from cronsim import CronSim

from orchestrator.workflow.models.workflow import Schedule

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = timedelta(seconds=1)
_FIRST_WINDOW = timedelta(hours=1)


def next_fire(schedule: Schedule, after: datetime) -> datetime | None:
    """The first time strictly after an instant, in UTC; None if there is none within 50 years."""
    return next(_fires(schedule, after), None)


def fires_between(schedule: Schedule, after: datetime, until: datetime, *, limit: int) -> tuple[datetime, ...]:
    """The first `limit` times after `after` up to and including `until`, oldest first."""
    return tuple(islice(takewhile(lambda fire: fire <= until, _fires(schedule, after)), limit))


def latest_fire(schedule: Schedule, after: datetime, until: datetime) -> datetime | None:
    """The last time in (after, until], without walking through all those before it."""
    if schedule.every is not None:
        last = EPOCH + (until - EPOCH) // timedelta(seconds=schedule.every) * timedelta(seconds=schedule.every)
        return last if last > after else None
    window = _FIRST_WINDOW
    while True:
        start = max(after, until - window)
        newest = deque(takewhile(lambda fire: fire <= until, _fires(schedule, start)), maxlen=1)
        if newest or start == after:
            return newest[0] if newest else None
        window *= 4


def _fires(schedule: Schedule, after: datetime) -> Iterator[datetime]:
    after = after.astimezone(UTC)
    if schedule.every is not None:
        step = timedelta(seconds=schedule.every)
        fire = EPOCH + ((after - EPOCH) // step + 1) * step
        while True:
            yield fire
            fire += step
    assert schedule.cron is not None
    for minute in _minutes(schedule.cron, schedule.timezone, after):
        for second in _seconds(schedule.cron):
            fire = minute + second * _SECOND
            if fire > after:
                yield fire


def _minutes(cron: str, zone: str, after: datetime) -> Iterator[datetime]:
    """The minutes of the expression, in UTC, from the one that `after` lies in.

    CronSim leaves the offset aside for jobs at fixed hours, so near the end of daylight saving it may
    begin with minutes that are over: they are left out.
    """
    first = after.replace(second=0, microsecond=0)
    start = (first - _SECOND).astimezone(_zone(zone))
    for moment in CronSim(" ".join(cron.split()[-5:]), start):
        minute = moment.astimezone(UTC)
        if minute >= first:
            yield minute


@lru_cache(maxsize=4096)
def _seconds(cron: str) -> tuple[int, ...]:
    if len(cron.split()) == 5:
        return (0,)
    return tuple(sorted(CronSim(cron, EPOCH).seconds))


def _zone(name: str) -> tzinfo:
    return UTC if name == "UTC" else ZoneInfo(name)
