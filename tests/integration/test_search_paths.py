"""A name without a schema means the same to a step's session and to inference, wherever its search path comes from."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from urllib.parse import quote

import psycopg
import psycopg.rows
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from test_sql_means_what_was_parsed import context

from orchestrator.actions.postgres.statements import Query, QueryParams
from orchestrator.errors import StepFailed, UsageError
from orchestrator.inference.workflows import open_catalogs
from orchestrator.network.postgres import for_vault
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
    if wanted == "public":  # the reader's own path hides what a fresh login would have
        with open_catalogs({"odd": Secret(catalog)}, {"odd": endpoint}) as catalogs, pytest.raises(UsageError):
            catalogs.of("odd")
        with psycopg.connect(database, autocommit=True) as session:
            session.execute("ALTER ROLE catalog RESET search_path")
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
    with psycopg.connect(database, autocommit=True) as session:
        session.execute("ALTER ROLE catalog RESET search_path")
    with open_catalogs({"odd": Secret(catalog)}, {"odd": there.endpoints["support"]}) as catalogs:
        found = catalogs.of("odd").of("SELECT * FROM doc")
    assert isinstance(before, dict)
    assert [list(each.columns) for each in found.privileges] == [before["columns"]]


OPTIONS_AS_WRITTEN = [
    "-c search_path=north,public",
    "-csearch_path=north,\\ public",
    "-c search_path=\\ north\\ ,public -c work_mem=5MB",
    "  -c  work_mem=5MB   -csearch_path=north ",
    r"-c search_path=no\rth",
    r'-c search_path="no\ rth",north -c TimeZone=Europe/Rome',
    "-c search_path=north -c search_path=south",
    "-c default_transaction_isolation=repeatable\\ read -c datestyle=German",
    "-c search_path= -c app.name=x=y\\\\z'q",
]
SHOWN = (
    "SELECT current_setting('search_path') AS path, current_setting('work_mem') AS memory, "
    "current_setting('transaction_isolation') AS isolation, current_setting('app.name', true) AS name"
)


@pytest.mark.parametrize("options", OPTIONS_AS_WRITTEN)
def test_options_mean_what_the_server_itself_takes_them_for(new_database: str, options: str) -> None:
    with psycopg.connect(new_database, options=options, row_factory=psycopg.rows.dict_row) as session:
        expected = session.execute(SHOWN).fetchone()
    there = context(new_database)
    endpoint = f"{there.endpoints['support']}?options={quote(options)}"
    output = asyncio.run(Query().run(QueryParams(sql=SHOWN), replace(there, endpoints={"support": endpoint})))
    assert isinstance(output, dict)
    assert output["rows"] == [expected]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("-c no_such_setting=1", "unrecognized configuration parameter"),
        ("-c work_mem=much", "invalid value for parameter"),
        ("-c log_connections=on", "cannot be set"),
        ("-c shared_buffers=1GB", "cannot be changed"),
    ],
)
def test_options_that_the_server_refuses_are_told_in_its_words(new_database: str, options: str, why: str) -> None:
    there = context(new_database)
    there = replace(there, endpoints={"support": f"{there.endpoints['support']}?options={quote(options)}"})
    with pytest.raises(StepFailed) as caught:
        asyncio.run(Query().run(QueryParams(sql="SELECT 1"), there))
    assert why in caught.value.message
    assert "`options` of the endpoint" in str(caught.value.hint)


def test_vaults_own_connection_has_none_of_the_settings_for_steps() -> None:
    settings = "-c%20search_path%3Dnorth%20-cTimeZone%3DUTC"
    assert for_vault(f"postgresql://127.0.0.1/a?options={settings}") == "postgresql://127.0.0.1/a"
    told = for_vault(f"postgresql://127.0.0.1/a?options={settings}%20project%3Dx&sslmode=disable")
    assert told == "postgresql://127.0.0.1/a?options=project%3Dx&sslmode=disable"
    for address in ("https://service.example", "host=db", "postgresql://u@h/d", "postgresql://h/d?no_such_word=1"):
        with pytest.raises(UsageError, match="Vault cannot connect"):
            for_vault(address)
