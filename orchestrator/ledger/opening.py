"""How a ledger is opened. Importing this costs nothing; SQLAlchemy is imported by opening."""

from __future__ import annotations

from collections.abc import Iterator
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
    """The same for reading alone, without what only a writer needs. Raises as `open_ledger` does."""
    from orchestrator.ledger.reading.reader import Reader

    engine, location = _connected(url)
    try:
        yield Reader(engine, location.label)
    finally:
        engine.dispose()


def _connected(url: str) -> tuple[Engine, Location]:
    """The engine of a ledger whose schema is current."""
    from sqlalchemy.exc import SQLAlchemyError

    from orchestrator.ledger.faults import ledger_error
    from orchestrator.ledger.location import locate
    from orchestrator.ledger.storage.connect import connect, refuse_shared_sessions
    from orchestrator.ledger.storage.migrate import ensure_schema

    location = locate(url)
    engine = connect(location)
    try:
        refuse_shared_sessions(engine, location)
        ensure_schema(engine, location)
    except (SQLAlchemyError, engine.dialect.loaded_dbapi.Error, OSError) as error:
        engine.dispose()
        raise ledger_error(error, location.label) from error
    except BaseException:
        engine.dispose()
        raise
    return engine, location
