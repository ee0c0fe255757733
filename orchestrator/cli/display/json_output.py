"""JSON for other programs: times in UTC, names as in the code."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from orchestrator.jsontypes import JsonValue


def plain(value: object) -> JsonValue:
    """A record, or a collection of records, as JSON values. Raises TypeError for what has no JSON form."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, datetime):
        return utc(value)
    if value is None or isinstance(value, str | int | float):
        return value if not isinstance(value, str) else str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence | frozenset):
        return [plain(item) for item in value]
    raise TypeError(f"a {type(value).__name__} has no JSON form")


def utc(moment: datetime) -> str:
    """`2026-03-02T05:00:05.000000Z`."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def print_json(value: object) -> None:
    """One indented document on standard output."""
    sys.stdout.write(json.dumps(plain(value), indent=2, ensure_ascii=False) + "\n")


def json_line(value: object) -> str:
    """The same on one line."""
    return json.dumps(plain(value), ensure_ascii=False)
