"""What a database's error means for the ledger, and what its user is to do about it.

Only the first line of a driver's message is shown: the following ones may quote rows.
"""

from __future__ import annotations

from enum import Enum

from sqlalchemy.exc import DBAPIError

from orchestrator.errors import LedgerError
from orchestrator.network.postgres import refusal_hint

NOTHING_RECORDED = "Nothing is issued that cannot be recorded."

SQLITE_HINTS = (
    ("is full", "Free disk space, then run again."),
    ("readonly", "Give this user write access to the file and to its directory."),
    ("locked", "Another process holds the write lock; find it (fuser, lsof) and let it end."),
    ("unable to open", "Check that the directory exists and that this user may write to it."),
    ("disk I/O", "Check the disk and the file system, then run again."),
    ("malformed", "The file is damaged: restore it from a backup, then run `orchestrator runs verify`."),
    ("decode to UTF-8", "Something else has written to the file: restore it from a backup."),
    ("not a database", "The path names another kind of file: give the ledger another path."),
)
"""By a part of SQLite's message (https://sqlite.org/rescode.html)."""

POSTGRESQL_HINTS = (
    ("28", "Check the user and the password of the ledger URL."),
    ("3D", "Create the database that the ledger URL names."),
    ("42501", "Let the owner of the database grant this user what the message names."),
    ("53100", "Free disk space on the database server, then run again."),
    ("53", "The database server is short of connections or memory; free some, then run again."),
    ("25006", "The server is a standby: point the ledger URL at the primary."),
    ("55P03", "Another process holds the run's row; find it in pg_stat_activity and let it end."),
)
"""By the start of the SQLSTATE (PostgreSQL manual, appendix A)."""

UNREACHABLE = "Check that the PostgreSQL server runs and that this machine can reach it, then run again."


class Blame(Enum):
    """Who has to do with an error in a transaction."""

    CONNECTION = "the connection is lost; a fresh one may do"
    STATEMENT = "something in the transaction; the rest may succeed without it"
    DATABASE = "nothing can be written now"


def blame(error: Exception, *, lost: bool) -> Blame:
    """Who is at fault. `lost`: whether the connection is unusable."""
    state = _sqlstate(error)
    if lost or state.startswith(("08", "57P", "25006", "25P03")):
        return Blame.CONNECTION
    if isinstance(error, LedgerError):
        return Blame.DATABASE
    operational = any(base.__name__ == "OperationalError" for base in type(error).__mro__)
    return Blame.DATABASE if operational and not state.startswith("40") else Blame.STATEMENT


def ledger_error(error: Exception, label: str, at_fault: Blame = Blame.DATABASE) -> LedgerError:
    """The error to raise for a driver's one. `label` names the ledger."""
    if isinstance(error, LedgerError):
        return LedgerError(error.message, hint=error.hint)
    original = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    line = str(original).strip().partition("\n")[0] or type(original).__name__
    if at_fault is Blame.STATEMENT:
        return LedgerError(
            f"the {label} refused these events: {line}", hint="None of them is recorded; the ids must be new."
        )
    return LedgerError(f"the {label} cannot be used: {line}", hint=f"{_hint(original, line)} {NOTHING_RECORDED}")


def _hint(error: BaseException, line: str) -> str:
    state = _sqlstate(error)
    if type(error).__module__.startswith("sqlite3"):
        hints = (hint for part, hint in SQLITE_HINTS if part in line)
        return next(hints, "Run `orchestrator runs verify`.")
    if not state and (hint := refusal_hint(error)):
        return f"{hint[0].upper()}{hint[1:]}."
    hints = (hint for start, hint in POSTGRESQL_HINTS if state.startswith(start))
    return next(hints, UNREACHABLE if not state or state.startswith(("08", "57P")) else "See the server's log.")


def _sqlstate(error: BaseException) -> str:
    return getattr(error, "sqlstate", None) or ""
