"""How a ledger is opened. Importing this costs nothing; SQLAlchemy is imported by opening."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from orchestrator.clock import Clock

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from orchestrator.ledger.location import Location
    from orchestrator.ledger.reading.reader import Reader
    from orchestrator.ledger.writing.store import Ledger


def open_ledger(url: str, *, clock: Clock) -> Ledger:
    """Open the ledger at a path, `sqlite:////path/file.db` or `postgresql://...`, creating or upgrading its tables.

    Raises UsageError for a URL that is none, and LedgerError if it cannot be opened or is newer than this version.
    """
    from orchestrator.ledger.writing.store import Ledger

    engine, location = _connected(url)
    return Ledger(engine, location, clock)


@contextmanager
def open_reader(url: str) -> Iterator[Reader]:
    """The same for reading alone, without what only a writer needs. Raises as `open_ledger` does.

    An SQLite file that this user cannot write, such as an auditor's copy, is read as it is, if it is of this version.
    """
    from orchestrator.ledger.reading.reader import Reader

    engine, location = _connected(url, reading=True)
    try:
        yield Reader(engine, location.label)
    finally:
        engine.dispose()


@contextmanager
def open_examiner(url: str) -> Iterator[tuple[Reader, Callable[[], None]]]:
    """For looking at a ledger that is there: nothing is made or upgraded, and another version is a LedgerError.

    With the reader comes a function that raises LedgerError where the ledger could not be written; it writes nothing.
    """
    from orchestrator.ledger.reading.reader import Reader

    engine, location = _connected(url, reading=True, upgrade=False)
    try:
        yield Reader(engine, location.label), lambda: _try_writing(engine, location)
    finally:
        engine.dispose()


def _try_writing(engine: Engine, location: Location) -> None:
    """One row is written as it is, and that is taken back."""
    from sqlalchemy import text
    from sqlalchemy.exc import SQLAlchemyError

    from orchestrator.ledger.faults import ledger_error
    from orchestrator.ledger.storage.connect import BEGIN

    try:
        with engine.connect().execution_options(**{BEGIN: "BEGIN IMMEDIATE"}) as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = version_num"))
            connection.rollback()
    except SQLAlchemyError as error:
        raise ledger_error(error, location.label) from error


def _connected(url: str, *, reading: bool = False, upgrade: bool = True) -> tuple[Engine, Location]:
    """The engine of a ledger whose schema is current."""
    from sqlalchemy.exc import SQLAlchemyError

    from orchestrator.ledger.faults import ledger_error
    from orchestrator.ledger.location import locate
    from orchestrator.ledger.storage.connect import can_be_written, connect, connect_to_read, refuse_shared_sessions
    from orchestrator.ledger.storage.migrate import ensure_schema, refuse_other_schemas

    location = locate(url)
    only_read = reading and location.path is not None and not can_be_written(location.path)
    engine = connect_to_read(location) if only_read else connect(location)
    try:
        refuse_shared_sessions(engine, location)
        if only_read or not upgrade:
            refuse_other_schemas(engine, location)
        else:
            ensure_schema(engine, location)
    except (SQLAlchemyError, engine.dialect.loaded_dbapi.Error, OSError) as error:
        engine.dispose()
        raise ledger_error(error, location.label) from error
    except BaseException:
        engine.dispose()
        raise
    return engine, location
