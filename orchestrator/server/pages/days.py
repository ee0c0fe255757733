"""How long credentials were held, day by day.

The database adds up one day at a time, over the index of time. A day that is past and of which nothing is open never
changes again, so that it is added up once in a process.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

from orchestrator.ledger.types import Exposure, LedgerReader

MOST_DAYS = 366
"""Of one range."""

SETTLED = timedelta(hours=1)
"""So long after its end nothing is recorded any more as asked for on a day, however far clocks are apart."""


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
