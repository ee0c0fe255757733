"""Time, injected. Deadlines use the monotonic clock; only what people read uses the wall clock."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """What the runtime knows of time."""

    def now(self) -> datetime:
        """The wall clock, in UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds since an arbitrary point; never goes back."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> datetime:
        """The wall clock, in UTC; it may jump."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Seconds since some moment (CLOCK_MONOTONIC); comparable within this machine's boot only."""
        return time.monotonic()
