"""The agent's own token: given once, asked of a function, or read from a file that somebody else renews."""

from __future__ import annotations

import base64
import json
import math
import os
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.client.errors import Unauthenticated
from orchestrator.clock import Clock
from orchestrator.secret import Secret

Token = str | os.PathLike[str] | Callable[[], str]
"""A token, the path of a file with one, or what returns one. `str` is always the token itself."""

AsyncToken = Token | Callable[[], Awaitable[str]]

EARLY = 30.0
"""So many seconds before a token expires a function is asked for the next one."""

_SENDABLE = re.compile(r"[A-Za-z0-9._~+/-]+=*")
"""RFC 6750, 2.1. Anything else is not sent: a line break in a header would be quoted in an error of the transport."""


@dataclass(slots=True)
class OwnToken:
    """Where the agent's token comes from. Threads may use it at the same time."""

    given: AsyncToken | None = field(repr=False)
    clock: Clock
    _kept: tuple[Secret, float] | None = None
    """The token, and when the next one is to be asked for, in seconds since 1970."""

    def __post_init__(self) -> None:
        if isinstance(self.given, str):
            self._kept = (Secret(_sendable(self.given)), math.inf)

    def kept(self, refused: str | None) -> str | None:
        """The one at hand, unless it is to be asked for. `refused`: what the broker did not believe just now."""
        if self._kept is None:
            return None
        token, until = self._kept
        if until != math.inf and (self.clock.now().timestamp() >= until or token.reveal() == refused):
            return None
        return token.reveal()

    def ask(self) -> str | Awaitable[str]:
        """Read the file, or ask the function. Raises Unauthenticated, and what the function raises."""
        if callable(self.given):
            return self.given()
        assert self.given is not None
        try:
            return Path(self.given).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise Unauthenticated(
                f"the agent's token cannot be read: {getattr(error, 'strerror', None) or type(error).__name__}",
                hint=f"is {os.fspath(self.given)} the file with the token?",
            ) from None

    def keep(self, token: str) -> str:
        """What was asked for, ready to be sent. Raises Unauthenticated for what is no token."""
        token = _sendable(token.strip())
        if callable(self.given):
            expires = _expires(token)
            self._kept = (Secret(token), _NEVER if expires is None else expires - EARLY)
        return token


_NEVER = float(2**53)
"""A token that does not say when it expires is kept until the broker refuses it."""


def _sendable(token: str) -> str:
    if not _SENDABLE.fullmatch(token):
        raise Unauthenticated(
            "the agent's token cannot be sent: it is empty, or holds a character that no bearer token has",
            hint="give the token itself as a str, and the path of a file with it as a pathlib.Path",
        )
    return token


def _expires(token: str) -> float | None:
    """What a JWT says of its end, to ask for the next one in time. Nothing is verified: that is for the broker."""
    try:
        part = token.split(".")[1]
        found = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))["exp"]
        return float(found)
    except (ValueError, TypeError, KeyError, IndexError):
        return None
