"""What is said of SQL without a database, held against the database's own analysis, statement by statement."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from offline_statements import CHANGES, OBJECTS, SELECTS
from test_inference_statements import SCHEMA, STATEMENTS

from orchestrator.devstack.postgres import Postgres
from orchestrator.grants.privileges import COLUMN_VERBS, TABLE_VERBS, Privilege, merge
from orchestrator.inference.live import Inference, Inferred
from orchestrator.inference.offline import Certain, certain, described, missing, superfluous, unnamed

PATHS = ["public", "shop, public"]
"""A name without a schema is another table under the second one, where there is a `customer` in both."""


@pytest.fixture(scope="module")
def admin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[psycopg.Connection[Any]]:
    with (
        Postgres(tmp_path_factory.mktemp("offline") / "server") as server,
        psycopg.connect(server.dsn().reveal(), autocommit=True) as admin,
    ):
        admin.execute((SCHEMA + OBJECTS).encode())
        admin.execute("CREATE ROLE reader LOGIN PASSWORD 'reader'")
        yield admin


@pytest.fixture(scope="module", params=PATHS)
def inference(request: pytest.FixtureRequest, admin: psycopg.Connection[Any]) -> Iterator[Inference]:
    """An ordinary login, with no privilege on any table."""
    info = admin.info
    with psycopg.connect(
        host=info.host, port=info.port, dbname=info.dbname, user="reader", password="reader", autocommit=True
    ) as session:
        session.execute("SELECT set_config('search_path', %s, false)", [request.param])
        yield Inference(session)


@pytest.fixture(scope="module")
def everything(admin: psycopg.Connection[Any]) -> list[Privilege]:
    """Every verb on every table and view, with every column by its name: the widest grant there can be."""
    rows = admin.execute(
        "SELECT n.nspname, c.relname, array_agg(a.attname::text ORDER BY a.attname) FROM pg_class c"
        " JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid"
        " WHERE n.nspname IN ('public', 'shop', 'My Schema') AND c.relkind IN ('r', 'v', 'm', 'p', 'f')"
        " AND a.attnum > 0 AND NOT a.attisdropped GROUP BY 1, 2"
    ).fetchall()
    return [
        Privilege(verb, schema, name, tuple(sorted(columns)) if verb in COLUMN_VERBS else ())
        for schema, name, columns in rows
        for verb in TABLE_VERBS
    ]


def units(privileges: list[Privilege]) -> set[tuple[str, str, str, str]]:
    """Each column by itself, `*` for all, and each verb on a table by itself."""
    return {(each.verb, each.schema, each.name, column) for each in privileges for column in each.columns or ("",)}


def both(statement: str, inference: Inference) -> tuple[Certain, Inferred]:
    placeholders = "%(" in statement
    offline = certain(statement, placeholders=placeholders)
    assert offline is not None
    return offline, inference.of(statement, placeholders=placeholders)


EVERY = [*STATEMENTS.values(), *SELECTS, *CHANGES]


@pytest.mark.parametrize("statement", EVERY)
def test_what_is_said_offline_is_what_the_database_says(
    inference: Inference, everything: list[Privilege], statement: str
) -> None:
    offline, live = both(statement, inference)
    needed = list(live.privileges)
    lacking = [each for each in missing(needed, offline.privileges) if not said_of_a_sequence(each, live)]
    assert lacking == [], "an error of `validate` would be false"
    assert not units(superfluous(merge([*everything, *needed]), offline)) & units(needed), "not needed, it says"
    assert superfluous(needed, offline) == [], "of exactly what is needed, nothing can be taken out"
    for privilege in unnamed(needed, offline):
        assert hidden_behind(privilege, statement, live), f"the statement names the table of {privilege.describe()}"


def said_of_a_sequence(privilege: Privilege, live: Inferred) -> bool:
    """What is needed to read a sequence as a table is no privilege that can be declared, and a note says so."""
    return any(f"reading the sequence {privilege.object} " in note for note in live.notes)


def hidden_behind(privilege: Privilege, statement: str, live: Inferred) -> bool:
    """Whether it is a view with the rights of its reader, or a function, that needs it."""
    functions = [each for each in (*live.privileges, *live.everyones) if each.verb == "execute"]
    return privilege.name not in statement and ("shop.invoker" in statement or bool(functions) or "CALL" in statement)


def of_columns(inference: Inference, everything: list[Privilege], statements: list[str]) -> tuple[int, int]:
    """In how many statements a needed column is told, and in how many one that is not needed."""
    needed = not_needed = 0
    for statement in statements:
        offline, live = both(statement, inference)
        needed += any(each.columns for each in offline.privileges)
        wide = [
            each for each in everything if any((each.schema, each.name) == (a.schema, a.name) for a in live.privileges)
        ]
        not_needed += bool(superfluous(wide, offline))
    return needed, not_needed


def test_something_is_said_of_most_statements_on_one_table(inference: Inference, everything: list[Privilege]) -> None:
    plain = [each for each in EVERY if each.count("FROM") == 1 and "JOIN" not in each and "WITH" not in each]
    needed, not_needed = of_columns(inference, everything, plain)
    assert needed > len(plain) / 2, f"of {len(plain)} statements"
    assert not_needed > len(plain) / 3, f"of {len(plain)} statements"


ASKED = [
    # What an error of `validate` is to be raised for, and what a warning: with the grant, and what is said of it.
    ("SELECT first, last FROM person ORDER BY born", "select (born, first, last) on person", ""),
    ("SELECT count(*) FROM person", "select on person", ""),
    ("SELECT date_trunc('day', born) AS born, count(id) FROM person GROUP BY born", "select (born, id) on person", ""),
    ("SELECT upper(first) FROM person ORDER BY upper", "select (first) on person", ""),
    ("SELECT p.first FROM person p", "select on person", "select (first) on person"),
    ("UPDATE shop.orders SET total = total + 1", "update (total) on shop.orders, select (total) on shop.orders", ""),
    ("DELETE FROM person RETURNING old.first", "delete on person", "select (first) on person"),
]


@pytest.mark.parametrize(("statement", "needs", "of_rows"), ASKED)
def test_what_is_certain_is_told(statement: str, needs: str, of_rows: str) -> None:
    offline = certain(statement, placeholders=False)
    assert offline is not None
    assert ", ".join(map(described, offline.privileges)) == needs
    assert ", ".join(map(described, offline.of_rows)) == of_rows
