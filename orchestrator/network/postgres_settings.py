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

_SETTING = re.compile(r"([A-Za-z_][A-Za-z0-9_$.]*)=(.*)", re.DOTALL)
_ISOLATION = re.compile(r"read (?:un)?committed|repeatable read|serializable", re.IGNORECASE)


def without_settings(address: str) -> tuple[str, dict[str, str]]:
    """The address as it can be connected to, and the settings (`-c name=value`) that its `options` had.

    What else there is in `options` stays: some gateways find their database by it.
    Raises psycopg.ProgrammingError for what is no address.
    """
    from psycopg.conninfo import conninfo_to_dict, make_conninfo

    given = {name: str(value) for name, value in conninfo_to_dict(address).items()}
    if "options" not in given:
        return address, {}
    settings: dict[str, str] = {}
    rest: list[str] = []
    words = iter(_WORD.findall(given["options"]))
    for word in words:
        text = _plain(word)
        if text.startswith("-c"):
            said = _SETTING.fullmatch(text.removeprefix("-c") or _plain(next(words, "")))
            if said is None:
                raise _no_setting()
            settings[said[1]] = said[2]
        else:
            rest.append(word)
    return make_conninfo("", **{**given, "options": " ".join(rest)}), settings


_WORD = re.compile(r"(?:\\.|[^\s\\])+", re.DOTALL)
"""Spaces part the words of `options`, where there is no backslash before them (`pg_split_opts` of PostgreSQL)."""


def _plain(word: str) -> str:
    return re.sub(r"\\(.)", r"\1", word, flags=re.DOTALL)


def _no_setting() -> Exception:
    from psycopg import ProgrammingError

    return ProgrammingError("`options` of the address has a `-c` without `name=value`")


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
