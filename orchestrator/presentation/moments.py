"""Moments as people write them: `2026-03-02`, `2026-03-02T12:00:00Z`, `2h ago`."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, tzinfo

from orchestrator.errors import UsageError

_AGO = re.compile(r"(\d{1,6})\s*(s|m|h|d|w)(?:\s+ago)?", re.IGNORECASE)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def parse_moment(text: str, *, now: datetime, zone: tzinfo | None = None) -> datetime:
    """A time with a zone. Without an offset in the text it is of `zone`, or local time. Raises UsageError."""
    try:
        if match := _AGO.fullmatch(text.strip()):
            return now - timedelta(**{_UNITS[match[2].lower()]: int(match[1])})
        moment = datetime.fromisoformat(text.strip())
        return moment.replace(tzinfo=moment.tzinfo or zone).astimezone(zone)
    except (ValueError, OverflowError):
        raise UsageError(
            f"{text!r} is not a time", hint="write 2026-03-02, 2026-03-02T12:00:00+07:00, or how long ago: 2h, 3d"
        ) from None
