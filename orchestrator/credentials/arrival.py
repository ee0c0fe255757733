"""Standby servers: a login that was made at the primary arrives there a moment later (PostgreSQL manual, 26.5)."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psycopg

WAIT_SECONDS = 10.0
"""How long a server is given to learn of a login that was just issued; a standby is seldom a second behind."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 0.5


@dataclass(slots=True)
class Arrival:
    """Waiting until a server knows a login that was just issued: always the same one, since another would be as new.

    `until` is a value of the monotonic clock, in seconds; `waiting` is called before the first pause.
    """

    login: str
    until: float
    waiting: Callable[[], None] = lambda: None
    _pause: float = _FIRST_PAUSE
    _told: bool = False

    @classmethod
    def of(cls, login: str, *, seconds: float, waiting: Callable[[], None] = lambda: None) -> Arrival:
        """Wait from now on for so many seconds at most, and never longer than `WAIT_SECONDS`."""
        return cls(login, time.monotonic() + min(seconds, WAIT_SECONDS), waiting)

    def pause(self, error: psycopg.Error) -> float:
        """Seconds until the next try after this failure to connect. Raises the error where another one cannot help."""
        left = self.until - time.monotonic()
        if left <= 0 or not unknown_login(error, self.login):
            raise error
        if not self._told:
            self._told = True
            self.waiting()
        pause, self._pause = self._pause, min(self._pause * 2, _LONGEST_PAUSE)
        return min(pause, left)


_OF_A_POOLER = re.compile(
    r"FATAL: +(?:no such user|SASL authentication failed|password authentication failed)\s*$", re.MULTILINE
)
"""What PgBouncer says where the answer to its `auth_query` has no such login, or another password of it."""


def unknown_login(error: psycopg.Error, login: str) -> bool:
    """Whether a server refused to connect because it does not know the login, or not this password of it.

    libpq tells no SQLSTATE of a connection that did not come about, and the server's message is in the server's own
    language. Such a message names the login, and the server asked for a password first or says (in English) that
    there is no such role; so does 53300, where the role has too many connections. A pooler that asks the server for its
    logins has words of its own for it.
    """
    text = str(error)
    if _OF_A_POOLER.search(text):
        return True
    asked = error.pgconn is not None and error.pgconn.used_password
    return login in text and (asked or "does not exist" in text) and "too many connections" not in text
