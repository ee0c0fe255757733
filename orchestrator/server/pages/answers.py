"""What a page is asked and what it answers, apart from HTTP."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote, urlencode

from orchestrator.errors import OrchestratorError, UsageError
from orchestrator.presentation.moments import parse_moment

if TYPE_CHECKING:
    from orchestrator.server.pages.sessions import Session

ROOT = "/ui"

LONGEST = 500
"""Characters of one value in a query string."""

State = TypeVar("State", bound=StrEnum)


class NotThere(OrchestratorError):
    """The ledger has nothing of that name."""


class Elsewhere(Exception):
    """What was asked for is at another address."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.url = url


@dataclass(frozen=True, slots=True)
class Asked:
    """The names in the path of an address, and its query string."""

    path: str
    names: Mapping[str, str]
    query: Mapping[str, str]
    now: datetime
    session: Session | None = None
    """Whose browser asks; None where nobody has to log in."""

    def text(self, name: str) -> str | None:
        """A value, without spaces around it; None where there is none."""
        value = self.query.get(name, "").strip()
        if len(value) > LONGEST or "\0" in value:
            raise UsageError(f"`{name}` is longer than anything that can be looked for", hint="give less of it")
        return value or None

    def one_of(self, name: str, kind: type[State]) -> State | None:
        """One of the values of an enumeration. Raises UsageError for another one."""
        value = self.text(name)
        if value is None:
            return None
        try:
            return kind(value)
        except ValueError:
            hint = f"one of {', '.join(kind)}"
            raise UsageError(f"`{name}` cannot be {value!r}", hint=hint) from None

    def moment(self, name: str) -> datetime | None:
        """A time; without an offset it is UTC. Raises UsageError."""
        value = self.text(name)
        return None if value is None else parse_moment(value, now=self.now, zone=UTC)

    def flag(self, name: str) -> bool:
        """Whether something is switched on."""
        return self.text(name) in ("1", "on", "true", "yes")

    def number(self, name: str, default: int, *, least: int, most: int) -> int:
        """A whole number within bounds. Raises UsageError."""
        value = self.text(name)
        if value is None:
            return default
        if not value.isascii() or not value.isdigit() or not least <= int(value) <= most:
            raise UsageError(f"`{name}` cannot be {value!r}", hint=f"a whole number from {least} to {most}")
        return int(value)

    def given(self) -> Mapping[str, str]:
        """What the query string says, without what is empty."""
        return {name: value for name in self.query if (value := self.text(name)) is not None}

    def with_(self, **changes: str | None) -> str:
        """This address with another query string: None takes a value out."""
        return self.under(self.path, **changes)

    def under(self, path: str, **changes: str | None) -> str:
        """The same of another path."""
        query = {name: value for name, value in {**self.given(), **changes}.items() if value}
        return path + (f"?{urlencode(query)}" if query else "")


@dataclass(frozen=True, slots=True)
class Page:
    """A template and what it is filled with."""

    template: str
    values: Mapping[str, object] = field(default_factory=dict)
    status: int = 200


@dataclass(frozen=True, slots=True)
class Download:
    """A file that is made while it is sent."""

    name: str
    media_type: str
    parts: Iterator[bytes]


def address(*parts: str | int) -> str:
    """`/ui/runs/ID`: each part is one segment, whatever is in it."""
    return "/".join((ROOT, *(text if _PLAIN(text) else quote(text, safe="") for text in map(str, parts))))


_PLAIN = re.compile(r"[A-Za-z0-9_-]+").fullmatch
"""Nearly every id: there are hundreds on a page."""
