"""What DBOS reads from its tables becomes data and never code.

Each row of DBOS's tables says itself how it was encoded, and `py_pickle` is always among what DBOS 3.4 can decode,
whatever serializer it was given (`dbos/_serialization.py`). A pickle is a program: who can write one row could run
code in every worker. So the decoder refuses it in this process, and a constraint keeps such rows out of the tables.
Both lean on how DBOS is made inside: the requirement stays below 3.5, and the tests plant a pickle in each table.
"""

from __future__ import annotations

import logging
from typing import Any, NoReturn

from dbos import _serialization
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import ProgrammingError

from orchestrator.errors import LedgerError
from orchestrator.ledger.storage.connect import ONLY_ONE

log = logging.getLogger(__name__)

OURS = "orchestrator_references"
"""What our rows say of how they are encoded: `orchestrator.queue.references`."""

_PORTABLE = _serialization.DBOSPortableJSON.name()
"""What DBOS's own functions in the database, and its clients in other languages, write: JSON."""

CONSTRAINT = "orchestrator_no_code"


class PickleRefused(LedgerError):
    """A row of DBOS's tables holds a pickle, or was to hold one. Nothing of it was looked at."""


def refuse_pickle() -> None:
    """From now on nothing is pickled or unpickled by DBOS in this process. May be called again."""
    for name in ("serialize", "deserialize"):
        setattr(_serialization.DefaultSerializer, name, _refused)


def _refused(*_: Any) -> NoReturn:
    raise PickleRefused(
        "a pickle in a table of DBOS is refused: it would be run as code",
        hint="find out who can write into these tables",
    )


def constrain(database: Engine, schema: str) -> None:
    """Let the tables of DBOS that say how a row is encoded hold our encoding and JSON only.

    Rows with another one that are there already are taken out: nothing is read from these tables, and we write no such
    rows. To be called after DBOS has made its tables, as often as one likes. Raises SQLAlchemyError.
    """
    with database.connect() as connection:
        if not _unconstrained(connection, schema):
            return
    try:
        with database.begin() as connection:
            connection.execute(ONLY_ONE)
            for table in _unconstrained(connection, schema):
                _constrain(connection, f'"{schema}"."{table}"')
    except ProgrammingError as error:  # the tables are another role's; what decodes in this process refuses anyway
        log.warning(
            "the tables of DBOS in the schema %s are not closed to pickled rows: %s; their owner must add to each "
            "table with the column `serialization`: CONSTRAINT %s %s",
            *(schema, str(error.orig).strip().splitlines()[0], CONSTRAINT, _check()),
        )


def _constrain(connection: Connection, table: str) -> None:
    # Nobody writes between the two.
    connection.execute(text(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"))
    foreign = connection.execute(text(f"DELETE FROM {table} WHERE NOT ({known_encoding()})")).rowcount  # noqa: S608
    if foreign:
        log.warning(
            "%d rows of %s held what neither we nor DBOS write there, and were taken out: find out who can write there",
            *(foreign, table),
        )
    connection.execute(text(f"ALTER TABLE {table} ADD CONSTRAINT {CONSTRAINT} {_check()}"))


def known_encoding() -> str:
    """The condition, in SQL, that a row says of itself that it is encoded as we or DBOS's clients encode."""
    return f"serialization IS NULL OR serialization IN ('{OURS}', '{_PORTABLE}')"


def _check() -> str:
    return f"CHECK ({known_encoding()})"


def _unconstrained(connection: Connection, schema: str) -> list[str]:
    """The tables that have the column and lack the constraint, whatever DBOS calls them."""
    query = """
        SELECT c.relname FROM pg_class c
        JOIN pg_namespace n ON n.oid = c.relnamespace
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'serialization' AND NOT a.attisdropped
        WHERE n.nspname = :schema AND c.relkind IN ('r', 'p')
        AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conrelid = c.oid AND k.conname = :name AND k.convalidated)
        ORDER BY c.relname
    """
    return [str(row[0]) for row in connection.execute(text(query), {"schema": schema, "name": CONSTRAINT})]
