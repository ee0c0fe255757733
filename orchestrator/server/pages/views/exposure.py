"""How long credentials were held, by workflow, agent and resource, beside what one that stands would have been.

It is added up day by day: see `orchestrator.server.pages.days`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from orchestrator.errors import UsageError
from orchestrator.server.pages.answers import Asked, Page
from orchestrator.server.pages.days import MOST_DAYS, By, Sum
from orchestrator.server.pages.drawing.svg import bar_svg, columns_svg
from orchestrator.server.pages.rendering import seconds_words
from orchestrator.server.pages.sources import Sources

DAYS = 30
MOST_ROWS = 200

DAY_SECONDS = 86400


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


def show_exposure(sources: Sources, asked: Asked) -> Page:
    """A range of days, added up by one of three names, and as columns day by day."""
    now = sources.clock.now()
    by = asked.one_of("by", By) or By.WORKFLOW
    first, last = _range(asked, now)
    days = [first + timedelta(days=number) for number in range((last - first).days + 1)]
    names = {each: name for each in By if (name := asked.text(each.value))}
    found = [sources.days.of(sources.reader, day, now).only(names) for day in days]
    standing = float(min(len(days) * DAY_SECONDS, (now - _midnight(first)).total_seconds()))
    lines = lines_of([day.by[by] for day in found], standing)
    most = max((line.seconds for line in lines), default=0.0)
    sums = [_together(day.by[by].values()) for day in found]
    columns = [_column(day, of_day) for day, of_day in zip(days, sums, strict=True)]
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
            "total": _line("", _together(sums), standing) if lines else None,
            "standing": standing,
            "drawn": columns_svg(columns, "Time held by day", f"{len(days)} days; the table has the sums."),
        },
    )


def _range(asked: Asked, now: datetime) -> tuple[date, date]:
    """Whole days in UTC, both of them included, up to today."""
    until = asked.moment("until")
    today = now.astimezone(UTC).date()
    last = today if until is None else min(today, until.astimezone(UTC).date())
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


def lines_of(days: Iterable[Mapping[str, Sum]], standing: float) -> list[Line]:
    """The sums of all days by name, what was held longest first."""
    sums: dict[str, Sum] = {}
    for day in days:
        for name, of_day in day.items():
            sums.setdefault(name, Sum()).add(of_day)
    lines = (_line(name, each, standing) for name, each in sums.items())
    return sorted(lines, key=lambda line: (-line.seconds, line.name))


def _together(found: Iterable[Sum]) -> Sum:
    total = Sum()
    for each in found:
        total.add(each)
    return total


def _line(name: str, of: Sum, standing: float) -> Line:
    return Line(name, of.leases, of.open, of.seconds, of.longest, standing)


def _column(day: date, of: Sum) -> tuple[str, float, str]:
    return day.isoformat(), of.seconds, f"{day.isoformat()}: {of.leases:,} leases, {seconds_words(of.seconds)}"


def _share(line: Line) -> str:
    return f"{seconds_words(line.seconds)} held"
