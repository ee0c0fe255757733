"""PostgreSQL's log in its three forms: which logins with names of ours were made and dropped.

Measured with PostgreSQL 18 and the statements that provisioning gives Vault. `log_statement = ddl` shows the
`CREATE ROLE` of every login, with its password or the verifier of that, and no drop: a function does it, and what
happens inside a function is not logged. `log_statement = all` shows the call too, `SELECT orchestrator.revoke('...')`.
A statement is logged before it is carried out.

Nothing is kept of a line but names of logins and times.
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path

from orchestrator.errors import OrchestratorError
from orchestrator.evidence.reconciliation.findings import Coverage
from orchestrator.grants.sql.logins import LoginChanges, login_changes

OURS = re.compile(r"orc_[^\s\"']{1,59}")
_WORTH_PARSING = re.compile(r"orc_", re.IGNORECASE)
_MAKES = re.compile(r"\b(?:CREATE|RENAME)\b", re.IGNORECASE)
_FAILED = ("ERROR", "FATAL", "PANIC")

_SEVERITY = re.compile(r"(?:^|\s|\])([^\s:]{2,12}):  ")
"""In the stderr form, after whatever `log_line_prefix` is: a word, a colon and two spaces."""
_BELONGING = frozenset(("DETAIL", "HINT", "QUERY", "CONTEXT", "LOCATION", "STATEMENT"))
_STATEMENT = re.compile(r"(?:[\w ]+: [\d.]+ ms  )?[^:'\"]{1,100}: (?=\S)")
"""`statement: `, `execute NAME: `, with a duration before it, in the language of `lc_messages`."""

_TIME = re.compile(r"(\d{4}-\d\d-\d\d) (\d\d:\d\d:\d\d(?:\.\d{1,6})?)[ ]?(UTC|GMT|Z|[+-]\d\d(?::?\d\d)?)(?![\w:])")
_CSV_TIME, _CSV_SEVERITY, _CSV_MESSAGE, _CSV_QUERY, _CSV_COLUMNS = 0, 11, 13, 19, 23
_BEFORE_MESSAGE = 10_000
"""Characters that all columns before the message take at most."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One message. `query` is the statement that an error is about."""

    time: datetime | None
    severity: str
    message: str
    query: str = ""


@dataclass(slots=True)
class LoginFacts:
    """What a log says of logins."""

    coverage: Coverage = field(default_factory=Coverage)
    created: dict[str, datetime | None] = field(default_factory=dict)
    dropped: set[str] = field(default_factory=set)
    shows_calls: bool = False
    """Whether the log has any call of the functions that drop logins: else it cannot show how ours went."""
    unreadable: list[datetime | None] = field(default_factory=list)
    """When there were statements with a name of ours, and of making roles, that PostgreSQL's parser does not take."""
    _failed: Counter[str] = field(default_factory=Counter)
    _tried: Counter[str] = field(default_factory=Counter)

    def read(self, entry: Entry | None) -> None:
        """One entry; None for what is none."""
        if entry is None:
            self.coverage.broken += 1
            return
        self.coverage.saw(entry.time)
        if entry.severity in _FAILED:
            self._failed.update(self._ours(self._changes(entry.query, None).created))
        elif match := _STATEMENT.match(entry.message):
            changes = self._changes(entry.message[match.end() :], entry)
            created = self._ours(changes.created)
            self._tried.update(created)
            for login in created:
                self.created.setdefault(login, entry.time)
            self.dropped.update(changes.dropped, changes.given_to_drop)
            self.shows_calls = self.shows_calls or bool(changes.given_to_drop)

    def done(self) -> None:
        """All is read: logins of which every try failed were not made."""
        for login, failed in self._failed.items():
            if failed >= self._tried[login]:
                self.created.pop(login, None)

    def _ours(self, logins: Iterable[str]) -> list[str]:
        return [login for login in logins if OURS.fullmatch(login)]

    def _changes(self, sql: str, entry: Entry | None) -> LoginChanges:
        if not _WORTH_PARSING.search(sql):
            return LoginChanges()
        try:
            return login_changes(sql)
        except OrchestratorError:  # which may quote the statement, and so a password
            if entry is not None and _MAKES.search(sql):
                self.unreadable.append(entry.time)
            return LoginChanges()


def read_postgres(lines: Iterable[tuple[Path, str | None]]) -> LoginFacts:
    """What all these files say together; each may have a form of its own."""
    facts = LoginFacts()
    for some in _by_file(lines):
        for entry in _entries(some):
            facts.read(entry)
    facts.done()
    return facts


def _by_file(lines: Iterable[tuple[Path, str | None]]) -> Iterator[Iterator[str | None]]:
    """The lines of one file after the other."""
    for _, of_one in groupby(lines, key=itemgetter(0)):
        yield (line for _, line in of_one)


def _entries(lines: Iterator[str | None]) -> Iterator[Entry | None]:
    """In the form of the first line that says something."""
    skipped = 0
    for line in lines:
        if line is None or not line.strip():
            skipped += line is None
            continue
        yield from (None for _ in range(skipped))
        rest = chain([line], lines)
        if line.startswith("{"):
            yield from _json_entries(rest)
        elif _is_csv(line):
            yield from _csv_entries(rest)
        else:
            yield from _text_entries(rest)
        return
    yield from (None for _ in range(skipped))


def _is_csv(line: str) -> bool:
    """By what stands before the message, which may be of any length."""
    if _TIME.match(line) is None:
        return False
    try:
        return len(next(csv.reader([line[:_BEFORE_MESSAGE]]), [])) >= _CSV_MESSAGE
    except csv.Error:
        return False


def _json_entries(lines: Iterable[str | None]) -> Iterator[Entry | None]:
    for line in lines:
        if line is not None and not line.strip():
            continue
        try:
            said = json.loads(line or "")
        except (ValueError, RecursionError):
            yield None
            continue
        if not isinstance(said, dict) or "error_severity" not in said:
            yield None
            continue
        time, severity = _time(str(said.get("timestamp", ""))), str(said["error_severity"])
        yield Entry(time, severity, str(said.get("message", "")), str(said.get("statement", "")))


def _csv_entries(lines: Iterable[str | None]) -> Iterator[Entry | None]:
    """A statement of several lines is one field of several lines."""
    csv.field_size_limit(2**31 - 1)
    broken = 0

    def texts() -> Iterator[str]:
        nonlocal broken
        for line in lines:
            if line is None:
                broken += 1
            else:
                yield line + "\n"

    reader = csv.reader(texts(), strict=True)
    while True:
        try:
            row = next(reader, None)
        except csv.Error:
            yield None
            continue
        yield from (None for _ in range(broken))
        broken = 0
        if row is None:
            return
        if len(row) < _CSV_COLUMNS:
            if row:
                yield None
            continue
        yield Entry(_time(row[_CSV_TIME]), row[_CSV_SEVERITY], row[_CSV_MESSAGE], row[_CSV_QUERY])


def _text_entries(lines: Iterable[str | None]) -> Iterator[Entry | None]:
    """Lines that begin with a tab go on with the one before; a STATEMENT belongs to the error before it."""
    failed: Entry | None = None
    for text in _joined(lines):
        match = None if text is None else _SEVERITY.search(text)
        if text is None or match is None:
            yield None
            continue
        severity, said = match[1], text[match.end() :]
        if severity not in _BELONGING:
            entry = Entry(_time(text[: match.start()] or text[:80]), severity, said)
            failed = entry if severity in _FAILED else None
            yield entry
        elif severity == "STATEMENT" and failed is not None:
            yield Entry(failed.time, failed.severity, failed.message, said)
            failed = None


def _joined(lines: Iterable[str | None]) -> Iterator[str | None]:
    parts: list[str] = []
    for line in lines:
        if line is not None and line.startswith("\t") and parts:
            parts.append(line[1:])
            continue
        if parts:
            yield "\n".join(parts)
        parts = []
        if line is None:
            yield None
        elif line.strip():
            parts = [line]
    if parts:
        yield "\n".join(parts)


def _time(text: str) -> datetime | None:
    """The first time that tells its zone as an offset, or as UTC: names of other zones are ambiguous."""
    match = _TIME.search(text)
    if match is None:
        return None
    zone = match[3]
    try:
        moment = datetime.fromisoformat(f"{match[1]} {match[2]}").replace(tzinfo=UTC)
    except ValueError:
        return None
    if zone[0] not in "+-":
        return moment
    digits = zone[1:].replace(":", "").ljust(4, "0")
    offset = timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))
    return moment - offset if zone[0] == "+" else moment + offset
