"""How long credentials were held, by workflow, agent and resource, beside what one that stands would have been.

The database adds up one day at a time, over the index of time. A day that is past and of which nothing is open never
changes again, so that it is added up once in a process.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum

from orchestrator.errors import UsageError
from orchestrator.ledger.findings import Exposure
from orchestrator.ledger.types import LedgerReader
from orchestrator.server.pages.answers import Asked, Page
from orchestrator.server.pages.drawing.svg import bar_svg, columns_svg
from orchestrator.server.pages.rendering import seconds_words
from orchestrator.server.pages.sources import Sources

DAYS = 30
MOST_DAYS = 366
MOST_ROWS = 200

SETTLED = timedelta(hours=1)
"""So long after its end nothing is recorded any more as asked for on a day, however far clocks are apart."""

DAY_SECONDS = 86400


class By(StrEnum):
    """What is added up together."""

    WORKFLOW = "workflow"
    AGENT = "agent"
    RESOURCE = "resource"


@dataclass(frozen=True, slots=True)
class Line:
    """One workflow, agent or resource. `of_standing` is the share of the whole time that was held."""

    name: str
    leases: int
    open: int
    seconds: float
    longest: float
    standing: float

    @property
    def of_standing(self) -> float:
        """Time held over the time of one credential that is always there."""
        return self.seconds / self.standing if self.standing else 0.0


@dataclass(slots=True)
class Days:
    """What was added up of days that are over. Safe for threads: at worst two add up the same."""

    _known: dict[date, Sequence[Exposure]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, reader: LedgerReader, day: date, now: datetime) -> Sequence[Exposure]:
        """The credentials that were asked for on a day, in UTC."""
        with self._lock:
            known = self._known.get(day)
        if known is not None:
            return known
        start = datetime(day.year, day.month, day.day, tzinfo=UTC)
        found = reader.exposure(start, start + timedelta(days=1))
        if now > start + timedelta(days=1) + SETTLED and not any(each.open for each in found):
            with self._lock:
                self._known[day] = found
                while len(self._known) > 2 * MOST_DAYS:
                    del self._known[min(self._known)]
        return found


_days: dict[int, Days] = {}


def days_of(reader: LedgerReader) -> Days:
    """The days of a ledger that this process knows."""
    return _days.setdefault(id(reader), Days())


def show_exposure(sources: Sources, asked: Asked) -> Page:
    """A range of days, added up by one of three names, and as columns day by day."""
    now = sources.clock.now()
    by = asked.one_of("by", By) or By.WORKFLOW
    first, last = _range(asked, now)
    known = days_of(sources.reader)
    days = [first + timedelta(days=number) for number in range((last - first).days + 1)]
    found = [(day, _chosen(known.of(sources.reader, day, now), asked)) for day in days]
    standing = float(min(len(days) * DAY_SECONDS, (now - _midnight(first)).total_seconds()))
    lines = added_up((each for _, of_day in found for each in of_day), by, standing)
    most = max((line.seconds for line in lines), default=0.0)
    totals = added_up((each for _, of_day in found for each in of_day), None, standing)
    columns = [_column(day, of_day) for day, of_day in found]
    return Page(
        "exposure.html",
        {
            "asked": asked,
            "by": by,
            "choices": list(By),
            "first": first,
            "last": last,
            "days": len(days),
            "lines": [
                (line, bar_svg(line.seconds / most if most else 0.0, _share(line))) for line in lines[:MOST_ROWS]
            ],
            "left": max(0, len(lines) - MOST_ROWS),
            "total": totals[0] if totals else None,
            "standing": standing,
            "drawn": columns_svg(columns, "Time held by day", f"{len(days)} days; the table has the sums."),
        },
    )


def _range(asked: Asked, now: datetime) -> tuple[date, date]:
    """Whole days in UTC, both of them included."""
    until = asked.moment("until")
    last = (until or now).astimezone(UTC).date()
    since = asked.moment("since")
    days = asked.number("days", DAYS, least=1, most=MOST_DAYS)
    try:
        first = last - timedelta(days=days - 1) if since is None else since.astimezone(UTC).date()
    except OverflowError:
        raise UsageError("that is before all time", hint="give a later day") from None
    if not 0 <= (last - first).days < MOST_DAYS:
        raise UsageError("the range must have a day at least, and a year at most", hint="give `since` before `until`")
    return first, last


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _chosen(found: Sequence[Exposure], asked: Asked) -> Sequence[Exposure]:
    for name in By:
        if value := asked.text(name):
            found = [each for each in found if getattr(each, name) == value]
    return found


def added_up(found: Iterable[Exposure], by: By | None, standing: float) -> list[Line]:
    """The sums by name, what was held longest first; without a name one sum of all."""
    sums: dict[str, Line] = {}
    for each in found:
        name = "" if by is None else str(getattr(each, by))
        line = sums.get(name) or Line(name, 0, 0, 0.0, 0.0, standing)
        sums[name] = Line(
            name,
            line.leases + each.leases,
            line.open + each.open,
            line.seconds + each.seconds,
            max(line.longest, each.longest),
            standing,
        )
    return sorted(sums.values(), key=lambda line: (-line.seconds, line.name))


def _column(day: date, found: Sequence[Exposure]) -> tuple[str, float, str]:
    seconds, leases = sum(each.seconds for each in found), sum(each.leases for each in found)
    return day.isoformat(), seconds, f"{day.isoformat()}: {leases:,} leases, {seconds_words(seconds)}"


def _share(line: Line) -> str:
    return f"{seconds_words(line.seconds)} held"
