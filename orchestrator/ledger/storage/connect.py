"""The engine of a ledger: how each connection is set up so that a commit is on disk when it returns."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, NullPool, create_engine, event, text
from sqlalchemy.engine.interfaces import DBAPIConnection

from orchestrator.errors import LedgerError
from orchestrator.ledger.location import Location

BEGIN = "ledger_begin"
"""Execution option: how a transaction begins on SQLite (`BEGIN IMMEDIATE` where it is going to write)."""

LOCK_WAIT_SECONDS = 10

SQLITE_SETUP = (
    f"PRAGMA busy_timeout = {LOCK_WAIT_SECONDS * 1000}",
    "PRAGMA synchronous = FULL",
    "PRAGMA fullfsync = ON",  # macOS: fsync alone does not reach the disk
    "PRAGMA foreign_keys = ON",
    "PRAGMA secure_delete = ON",  # what is dropped is overwritten, and does not lie about in the file
)

_HOLDS_EVERYTHING = ("UTF8", "SQL_ASCII")
"""Encodings of a database in which the UTF-8 that we send is kept as it is (PostgreSQL manual, 23.3.4)."""

# A stopped process must not hold a run's row for ever, and a commit must be on disk.
POSTGRESQL_SETUP = (
    f"SET lock_timeout = '{LOCK_WAIT_SECONDS}s'",
    "SET idle_in_transaction_session_timeout = '30s'",
    "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'",
)

# A peer that vanished is noticed within half a minute (libpq, "Parameter Key Words"); milliseconds and seconds.
POSTGRESQL_CONNECT = {
    "application_name": "orchestrator-ledger",
    "connect_timeout": 10,
    "tcp_user_timeout": 20_000,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}


ONLY_ONE = text("SELECT version_num FROM alembic_version FOR UPDATE")
"""PostgreSQL: until the end of the transaction nobody else gets past this. The row is the ledger's, so that only who
may write the ledger can hold it; an advisory lock could be held by every login of the server, a step's among them."""


def connect(location: Location) -> Engine:
    """An engine for the location; nothing is opened yet, but an SQLite file is created (0600, its directory 0700)."""
    if location.path is None:
        defaults: dict[str, Any] = {
            name: value for name, value in POSTGRESQL_CONNECT.items() if name not in location.url.query
        }
        engine = create_engine(location.url, hide_parameters=True, pool_pre_ping=True, connect_args=defaults)
        event.listen(engine, "connect", _set_up_postgresql)
        return engine
    _create_file(location.path)
    engine = create_engine(location.url, hide_parameters=True, paramstyle="named")
    event.listen(engine, "connect", _set_up_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def can_be_written(path: Path) -> bool:
    """Whether this user may write an SQLite file, or make it: SQLite makes files of its own beside it."""
    return os.access(path.parent, os.W_OK | os.X_OK) and os.access(path, os.W_OK) if path.exists() else True


def connect_to_read(location: Location) -> Engine:
    """An engine for an SQLite file that cannot be written, such as a copy on a read-only disk.

    Beside a copy there is usually no write-ahead log, and none can be made: then SQLite is told that nobody changes
    the file (https://sqlite.org/wal.html, "Read-Only Databases"). Raises LedgerError where a part of the history is in
    a log that cannot be read without its index: it would be missing without a word.
    """
    path = location.path
    assert path is not None, "PostgreSQL tells readers and writers apart itself"
    log, index = (path.with_name(path.name + suffix) for suffix in ("-wal", "-shm"))
    if not os.access(path, os.R_OK):
        raise LedgerError(
            f"the ledger file {path} cannot be read", hint="Let its owner give this user the right to read it."
        )
    indexed = log.exists() and index.exists()
    if not indexed and log.exists() and log.stat().st_size:
        raise LedgerError(
            f"the ledger file {path} cannot be read whole: its newest events are in {log.name}, without {index.name}",
            hint="Copy all three files, or make the copy with `sqlite3 LEDGER '.backup COPY'`.",
        )
    uri = f"{path.as_uri()}?{'mode=ro' if indexed else 'mode=ro&immutable=1'}"
    engine = create_engine(
        "sqlite://",
        creator=lambda: sqlite3.connect(uri, uri=True, check_same_thread=False),
        poolclass=NullPool,
        hide_parameters=True,
        paramstyle="named",
    )
    event.listen(engine, "connect", _set_up_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def refuse_shared_sessions(engine: Engine, location: Location) -> None:
    """Raise LedgerError where a pooler gives a session away after each transaction: what is set in it would not hold.

    A pooler has numbers of its own for the processes of the server. Behind one, a second connection shows whether the
    first has its process for itself.
    """
    if location.path is not None:
        return
    with engine.connect() as one:
        process = _served_by(one)
        driver: Any = one.connection.driver_connection
        if process == driver.info.backend_pid:
            return
        with engine.connect() as another:
            alone = _served_by(another) != process and _served_by(one) == process
    if not alone:
        raise LedgerError(
            f"the {location.label} is behind a pooler that changes sessions after each transaction",
            hint="a ledger needs `pool_mode = session` there, or the address of the server itself",
        )


def _served_by(connection: Connection) -> int:
    process = connection.execute(text("SELECT pg_catalog.pg_backend_pid()")).scalar_one()
    connection.rollback()
    return int(process)


def _create_file(path: Path) -> None:
    """Make the file where there is none. One that exists is not opened: closing it again would drop the locks
    of every connection that this process has to it (https://sqlite.org/howtocorrupt.html, section 2.2)."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        _check_access(path)
    except OSError as error:
        raise LedgerError(
            f"the ledger file {path} cannot be opened: {error.strerror}",
            hint="Check that its directory exists and that this user may write to both.",
        ) from error


def _check_access(path: Path) -> None:
    if not path.is_file() or not os.access(path, os.R_OK | os.W_OK):
        raise LedgerError(
            f"the ledger file {path} cannot be opened: it is no file that this user may read and write",
            hint="Check that its directory exists and that this user may write to both.",
        )


def _set_up_sqlite(connection: DBAPIConnection, _record: object) -> None:
    connection.isolation_level = None  # sqlite3 begins no transaction by itself; _begin_sqlite does
    _run(connection, SQLITE_SETUP)


def _set_up_postgresql(connection: Any, _record: object) -> None:
    """Raises LedgerError where what is to be recorded could not be."""
    encoding = connection.info.parameter_status("server_encoding")
    if encoding not in _HOLDS_EVERYTHING:
        raise LedgerError(
            f"the ledger's database has the encoding {encoding}, which cannot hold every text",
            hint="keep the ledger in a database of its own: CREATE DATABASE ledger ENCODING 'UTF8' TEMPLATE template0",
        )
    _run(connection, POSTGRESQL_SETUP)
    connection.commit()


def _run(connection: DBAPIConnection, statements: tuple[str, ...]) -> None:
    cursor = connection.cursor()
    try:
        for statement in statements:
            cursor.execute(statement)
    finally:
        cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get(BEGIN, "BEGIN"))
