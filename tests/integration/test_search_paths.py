"""A name without a schema means the same to a step's session and to inference, wherever its search path comes from."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from test_sql_means_what_was_parsed import context

from orchestrator.actions.postgres.statements import Query, QueryParams
from orchestrator.inference.workflows import open_catalogs
from orchestrator.secret import Secret

OPTIONS = "?options=-c%20search_path%3Dnorth%2C%5C%20public"
PLACES = {
    "nowhere": ("", ""),
    "the database": ("ALTER DATABASE {database} SET search_path = north, public", ""),
    "everybody": ("ALTER ROLE ALL SET search_path = north, public", ""),
    "everybody in the database": ("ALTER ROLE ALL IN DATABASE {database} SET search_path = north, public", ""),
    "the endpoint": ("", OPTIONS),
    "the endpoint before the database": ("ALTER DATABASE {database} SET search_path = south", OPTIONS),
}


@pytest.fixture(params=PLACES.values(), ids=PLACES)
def place(request: pytest.FixtureRequest, new_database: str) -> Iterator[tuple[str, str, str]]:
    """A database, the DSN of a login for its catalog whose own path is another one, and the endpoint's options."""
    statement, options = request.param
    given = conninfo_to_dict(new_database)
    with psycopg.connect(new_database, autocommit=True) as session:
        session.execute("CREATE SCHEMA north; CREATE SCHEMA south")
        for schema in ("north", "south", "public"):
            session.execute(f"CREATE TABLE {schema}.doc (of_{schema} int)".encode())
            session.execute(f"GRANT USAGE ON SCHEMA {schema} TO PUBLIC".encode())
        session.execute("CREATE ROLE catalog LOGIN PASSWORD 'pw'; ALTER ROLE catalog SET search_path = south")
        session.execute(statement.format(database=given["dbname"]).encode())
    yield new_database, make_conninfo(new_database, user="catalog", password="pw"), options
    with psycopg.connect(new_database, autocommit=True) as session:
        session.execute("ALTER ROLE ALL RESET search_path; DROP ROLE catalog")


def test_a_step_and_inference_mean_the_same_table(place: tuple[str, str, str], request: pytest.FixtureRequest) -> None:
    database, catalog, options = place
    there = context(database)
    endpoint = there.endpoints["support"] + options
    output = asyncio.run(
        Query().run(QueryParams(sql="SELECT * FROM doc"), replace(there, endpoints={"support": endpoint}))
    )
    assert isinstance(output, dict)
    wanted = "public" if "nowhere" in request.node.name else "north"
    assert output["columns"] == [f"of_{wanted}"]
    with open_catalogs({"odd": Secret(catalog)}, {"odd": endpoint}) as catalogs:
        found = catalogs.of("odd").of("SELECT * FROM doc")
    assert [each.describe() for each in found.privileges] == [f"select (of_{wanted}) on {wanted}.doc"]


def test_the_environment_does_not_choose_it(place: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    database, catalog, options = place
    there = context(database)
    there = replace(there, endpoints={"support": there.endpoints["support"] + options})
    before = asyncio.run(Query().run(QueryParams(sql="SELECT * FROM doc"), there))
    monkeypatch.setenv("PGOPTIONS", "-c search_path=south")
    assert asyncio.run(Query().run(QueryParams(sql="SELECT * FROM doc"), there)) == before
    with open_catalogs({"odd": Secret(catalog)}, {"odd": there.endpoints["support"]}) as catalogs:
        found = catalogs.of("odd").of("SELECT * FROM doc")
    assert isinstance(before, dict)
    assert [list(each.columns) for each in found.privileges] == [before["columns"]]
