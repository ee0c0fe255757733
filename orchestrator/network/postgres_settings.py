"""What a session of PostgreSQL is told once it is there, and what it answers, in one message.

Nothing is told while it connects (`options`): a pooler in between refuses that, or drops it without a word (PgBouncer,
`ignore_startup_parameters`). And it is told to a transaction wherever there is one, since the next one may be carried
out by another session of the server (PgBouncer, `pool_mode = transaction`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.network.postgres import STRINGS, reads_as_parsed

if TYPE_CHECKING:
    from psycopg import BaseConnection

_ISOLATION = re.compile(r"read (?:un)?committed|repeatable read|serializable", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server says of a session."""

    wanted: str
    """The login that connected."""
    login: str
    strings: str
    backend: int
    """The process that serves the session (`pg_backend_pid`), where a pooler tells another number."""

    @classmethod
    def of(cls, session: BaseConnection[Any], row: Sequence[Any] | None) -> Answer:
        """Read the last row that the statements of `beginning` or `telling` give."""
        assert row is not None, "a SELECT without FROM has one row"
        login, strings, backend = row[-3:]
        return cls(session.info.user, str(login), str(strings), int(backend))

    def problem(self) -> tuple[str, str] | None:
        """Why nothing must be done in this session, and what to do about it; None where it is as it should be."""
        if self.login != self.wanted:
            return (
                f"the session is one of `{self.login}`, and not of the login that connected",
                "a pooler in between connects as a user of its own: take `user` and `password` out of its entry for "
                "the database",
            )
        if not reads_as_parsed(self.strings):
            return (
                f"the session has {STRINGS} switched off, so that a statement may mean something else to the server",
                "leave that setting as it is",
            )
        return None


def beginning(session: BaseConnection[Any], settings: Mapping[str, str], *, read_only: bool) -> bytes:
    """The statements that begin a transaction with these settings, for one simple query (PostgreSQL manual, 54.2.2).

    Their last result is read by `Answer.of`. At a standby a transaction that is not read-only is refused (0A000).
    """
    mode = "READ ONLY" if read_only else "READ WRITE"
    isolation = settings.get("default_transaction_isolation", "")
    if _ISOLATION.fullmatch(isolation):  # as a default it would be one of later transactions
        mode += f", ISOLATION LEVEL {isolation}"
    return f"BEGIN {mode}; ".encode() + _said(session, settings, of_transaction=True)


def telling(session: BaseConnection[Any], settings: Mapping[str, str]) -> bytes:
    """The statement that tells a session these settings for good. Its result is read by `Answer.of`."""
    return _said(session, settings, of_transaction=False)


def _said(session: BaseConnection[Any], settings: Mapping[str, str], *, of_transaction: bool) -> bytes:
    """One SELECT, whose names nothing in a search path can stand for, and without a backslash outside of `E'...'`."""
    from psycopg import sql

    each = [
        sql.SQL("pg_catalog.set_config({}, {}, {})").format(name, value, sql.Literal(of_transaction))
        for name, value in settings.items()
    ]
    asked = sql.SQL("session_user, pg_catalog.current_setting({}), pg_catalog.pg_backend_pid()").format(STRINGS)
    return sql.SQL("SELECT {}").format(sql.SQL(", ").join([*each, asked])).as_bytes(session)
