"""Where a ledger is: its URL or path, without ever showing a password."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from orchestrator.errors import UsageError

HINT = "Give a path, sqlite:////absolute/path/ledger.db or postgresql://user@host/database."

_PATH = re.compile(r"^$|/|\.\w+$")
"""A bare word is a mistake, not a file in whatever folder one happens to be in; `:memory:` has a message of its own."""

_NO_PATH = re.compile(r"^[a-z+]+:(?!memory:$)|(?:^|\s)(?:host|hostaddr|dbname|user|password)\s*=")
"""A URL with too few slashes, and the parameters of libpq, which may hold a password."""


@dataclass(frozen=True, slots=True)
class Location:
    """`label` names the ledger in errors; `path` is the file of an SQLite ledger."""

    url: URL
    label: str
    path: Path | None


def locate(text: str) -> Location:
    """Read a ledger's URL or bare path. Raises UsageError, which shows at most the scheme."""
    if "://" not in text:
        if not _PATH.search(text) or _NO_PATH.search(text):
            raise UsageError("the ledger is neither a URL nor the path of a file", hint=HINT)
        return _file(text)
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise UsageError("the ledger URL cannot be read", hint=HINT) from None  # the cause would show the URL
    scheme = url.drivername
    if scheme == "sqlite":
        return _file(url.database or "")
    if scheme in ("postgresql", "postgres", "postgresql+psycopg"):
        url = url.set(drivername="postgresql+psycopg").update_query_dict({"client_encoding": "UTF8"})
        return Location(_protected(url), _postgresql_label(url), None)
    raise UsageError(f"a ledger cannot be kept in {scheme}", hint=HINT)


def _file(text: str) -> Location:
    if text in ("", ":memory:"):
        raise UsageError("an SQLite ledger needs a file", hint=HINT)
    path = Path(text).absolute()
    return Location(URL.create("sqlite", database=str(path)), f"ledger file {path}", path)


def _protected(url: URL) -> URL:
    """With what protects the ledger's own password on the way, as with every other database."""
    from orchestrator.network.postgres import protection

    given = {name: value if isinstance(value, str) else ",".join(value) for name, value in url.query.items()}
    given["host"] = url.host or ",".join(map(_without_port, given.get("host", "").split(",")))
    return url.update_query_dict(protection(given, password=url.password is not None or "password" in given))


def _without_port(host: str) -> str:
    return host if host.startswith("/") else re.sub(r"(?<=\]):\d*$|^([^:]*):\d*$", r"\1", host)


def _postgresql_label(url: URL) -> str:
    host = url.host or url.query.get("host") or "the default host"
    return f"PostgreSQL ledger {url.database or '(default database)'} at {host}"
