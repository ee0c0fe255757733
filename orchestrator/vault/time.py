"""What time it is at Vault, told by Vault itself.

Vault ends leases and tokens by its own clock, and every process that asks it hears the same one. So where
moments of two processes are compared, this clock is meant and never that of a machine of ours, which may
have been set forward or back in between.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from orchestrator.clock import Clock

_FRESH = 10.0
"""Seconds after an answer during which it tells the time. A Vault that is silent may be standing still."""

_YEARS = range(1970, 9000)
"""Any other is no clock's, and time could not be counted on from it."""


class VaultTime:
    """Vault's clock by the `Date` header (RFC 9110, 6.6.1) of its last answer, to the second.

    After the answer it goes on by our monotonic clock for a while.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._heard: tuple[datetime, float] | None = None

    def hear(self, date: str | None) -> None:
        """Take over the `Date` of an answer that has just come. What is malformed is passed over."""
        try:
            told = parsedate_to_datetime(date or "")
            told = told.astimezone(UTC) if told.tzinfo else told.replace(tzinfo=UTC)
        except (ValueError, OverflowError):
            return
        if told.year in _YEARS:
            self._heard = (told, self._clock.monotonic())

    def now(self) -> datetime | None:
        """The time at Vault, in UTC; None if it has not answered lately."""
        if self._heard is None:
            return None
        told, at = self._heard
        since = self._clock.monotonic() - at
        return told + timedelta(seconds=since) if since <= _FRESH else None
