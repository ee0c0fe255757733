"""Times as the ledger stores them: ISO 8601 in UTC with microseconds and `Z`, so that their text sorts as they do."""

from __future__ import annotations

from datetime import UTC, datetime


def time_to_text(moment: datetime) -> str:
    """Such as `2026-01-31T12:00:00.000000Z`. Raises ValueError for a time without a zone."""
    if moment.tzinfo is None:
        raise ValueError("a time without a zone cannot be recorded")
    return moment.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def text_to_time(text: str) -> datetime:
    """The inverse of `time_to_text`."""
    return datetime.fromisoformat(text)
