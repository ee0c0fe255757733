"""Lists that go on where the last page ended: by the last row, never by a count of those before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from orchestrator.ledger.reading.id_lookup import whole_id
from orchestrator.ledger.states import IdKind
from orchestrator.server.pages.answers import Asked, Elsewhere, NotThere, address
from orchestrator.server.pages.sources import Sources

Row = TypeVar("Row")

ROWS = 50
"""Rows of one page."""


def begins_so(sources: Sources, kind: IdKind, folder: str, text: str, missing: NotThere) -> Exception:
    """What to raise where nothing has this id: the address of the only one that begins so, or that there is none."""
    found = whole_id(sources.reader, kind, text)
    return missing if found == text else Elsewhere(address(folder, found))


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
