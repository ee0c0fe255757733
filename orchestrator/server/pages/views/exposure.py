"""How long credentials were held, by workflow, agent and resource, beside what one that stands would have been.

It is added up day by day: see `orchestrator.server.pages.days`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum

from orchestrator.errors import UsageError
from orchestrator.ledger.types import Exposure
from orchestrator.server.pages.answers import Asked, Page
from orchestrator.server.pages.days import MOST_DAYS
from orchestrator.server.pages.drawing.svg import bar_svg, columns_svg
from orchestrator.server.pages.rendering import seconds_words
from orchestrator.server.pages.sources import Sources

DAYS = 30
MOST_ROWS = 200

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


def show_exposure(sources: Sources, asked: Asked) -> Page:
    """A range of days, added up by one of three names, and as columns day by day."""
    now = sources.clock.now()
    by = asked.one_of("by", By) or By.WORKFLOW
    first, last = _range(asked, now)
    days = [first + timedelta(days=number) for number in range((last - first).days + 1)]
    found = [(day, _chosen(sources.days.of(sources.reader, day, now), asked)) for day in days]
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
