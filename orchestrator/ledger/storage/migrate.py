"""Brings a ledger's schema up to this version, once, even when several processes start together."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, text
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

from orchestrator.errors import LedgerError
from orchestrator.ledger.location import Location
from orchestrator.ledger.storage.connect import BEGIN
from orchestrator.ledger.storage.schema import CURRENT, REVISIONS


def ensure_schema(engine: Engine, location: Location) -> None:
    """Create or upgrade the tables where needed; one query when they are current.

    Raises LedgerError where the schema is newer than this version knows.
    """
    if _revision(engine, location.label) == CURRENT:
        return
    if location.path is None:
        try:
            _upgrade(engine, location.label)
        except IntegrityError:  # another process made the first table meanwhile, and is done
            _upgrade(engine, location.label)
        return
    with _locked(location.path.parent):
        with engine.connect() as connection:
            connection.connection.cursor().execute("PRAGMA journal_mode = WAL")  # stays so, for every connection
        _upgrade(engine, location.label)


def refuse_other_schemas(engine: Engine, location: Location) -> None:
    """Raise LedgerError unless the tables are those of this version: nothing is created or upgraded."""
    found = _revision(engine, location.label)
    if found == CURRENT:
        return
    if found is None:
        raise LedgerError(f"the {location.label} has no tables of a ledger", hint="The first run makes them.")
    raise LedgerError(
        f"the {location.label} has the schema {found}, and this version needs {CURRENT}",
        hint="Whoever opens it with the right to write, such as by `orchestrator runs list`, upgrades it.",
    )


def _revision(engine: Engine, label: str) -> str | None:
    """The installed revision, or None where there is no schema."""
    query = text("SELECT version_num FROM alembic_version")
    with engine.connect() as connection:
        try:
            revision = connection.execute(query).scalar()
        except (OperationalError, ProgrammingError):
            connection.rollback()
            if not inspect(connection).has_table("alembic_version"):
                return None
            revision = connection.execute(query).scalar()  # another process has made it meanwhile
    if revision is not None and revision not in REVISIONS:
        raise LedgerError(
            f"the {label} has the schema {revision}, which is newer than this version knows ({CURRENT})",
            hint="Upgrade the orchestrator on this machine, or give it a ledger of its own.",
        )
    return None if revision is None else str(revision)


def _upgrade(engine: Engine, label: str) -> None:
    """Run the missing revisions in one transaction that excludes every other upgrade."""
    from alembic import command
    from alembic.config import Config

    with engine.connect().execution_options(**{BEGIN: "BEGIN IMMEDIATE"}) as connection, connection.begin():
        _exclude_others(connection)
        if _revision(engine, label) == CURRENT:
            return
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _exclude_others(connection: Connection) -> None:
    """On SQLite BEGIN IMMEDIATE has done it. An advisory lock would not do: every login of the server can hold it."""
    if connection.dialect.name == "postgresql":
        columns = "version_num VARCHAR(32) NOT NULL CONSTRAINT alembic_version_pkc PRIMARY KEY"
        connection.execute(text(f"CREATE TABLE IF NOT EXISTS alembic_version ({columns})"))  # as Alembic would make it
        connection.execute(text("LOCK TABLE alembic_version IN EXCLUSIVE MODE"))


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One process at a time: changing the journal mode does not wait for locks as transactions do.

    The lock is on the directory, since opening and closing the database file would drop SQLite's own locks.
    """
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
