"""How long credentials were held, day by day.

The database adds up one day at a time, over the index of time. A day that is past and of which nothing is open never
changes again, so that it is added up once in a process: its sums by each name, too, since a year is many days.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum

from orchestrator.ledger.findings import Exposure
from orchestrator.ledger.types import LedgerReader

MOST_DAYS = 366
"""Of one range."""

SETTLED = timedelta(hours=1)
"""So long after its end nothing is recorded any more as asked for on a day, however far clocks are apart."""


class By(StrEnum):
    """What is added up together."""

    WORKFLOW = "workflow"
    AGENT = "agent"
    RESOURCE = "resource"


@dataclass(slots=True)
class Sum:
    """What several credentials come to, in seconds."""

    leases: int = 0
    open: int = 0
    seconds: float = 0.0
    longest: float = 0.0

    def add(self, other: Sum | Exposure) -> None:
        """Also these."""
        self.leases += other.leases
        self.open += other.open
        self.seconds += other.seconds
        if other.longest > self.longest:
            self.longest = other.longest


def added_up(found: Iterable[Exposure], by: By) -> dict[str, Sum]:
    """The sums by name."""
    sums: dict[str, Sum] = {}
    for each in found:
        sums.setdefault(str(getattr(each, by.value)), Sum()).add(each)
    return sums


@dataclass(frozen=True, slots=True)
class Day:
    """The credentials that were asked for on a day, in UTC."""

    found: Sequence[Exposure]
    by: Mapping[By, Mapping[str, Sum]]
    """Their sums, which nobody changes."""

    @classmethod
    def of(cls, found: Sequence[Exposure]) -> Day:
        """With their sums by each name."""
        return cls(found, {by: added_up(found, by) for by in By})

    def only(self, names: Mapping[By, str]) -> Day:
        """Those of these names."""
        if not names:
            return self
        found = self.found
        for by, name in names.items():
            found = [each for each in found if getattr(each, by.value) == name]
        return Day.of(found)


@dataclass(slots=True)
class Days:
    """What was added up of days that are over. Safe for threads: at worst two add up the same."""

    _known: dict[date, Day] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, reader: LedgerReader, day: date, now: datetime) -> Day:
        """The credentials that were asked for on a day, in UTC."""
        with self._lock:
            known = self._known.get(day)
        if known is not None:
            return known
        start = datetime(day.year, day.month, day.day, tzinfo=UTC)
        found = Day.of(reader.exposure(start, start + timedelta(days=1)))
        if now > start + timedelta(days=1) + SETTLED and not any(each.open for each in found.found):
            with self._lock:
                self._known[day] = found
                while len(self._known) > 2 * MOST_DAYS:
                    del self._known[min(self._known)]
        return found
