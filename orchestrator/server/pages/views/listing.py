"""Lists that go on where the last page ended: by the last row, never by a count of those before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from orchestrator.server.pages.answers import Asked

Row = TypeVar("Row")

ROWS = 50
"""Rows of one page."""


@dataclass(frozen=True, slots=True)
class Listed(Generic[Row]):
    """One page of a list. `older` and `newest` are addresses, empty where there is nothing there."""

    rows: Sequence[Row]
    older: str
    newest: str


def listed(asked: Asked, found: Sequence[Row], key: Callable[[Row], str]) -> Listed[Row]:
    """Of one row more than a page has."""
    rows = found[:ROWS]
    older = asked.with_(before=key(rows[-1])) if len(found) > ROWS else ""
    return Listed(rows, older, asked.with_(before=None) if asked.text("before") else "")
