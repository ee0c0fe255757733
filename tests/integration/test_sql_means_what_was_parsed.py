"""What our parser takes for a text is text to the server, too, whatever the database's settings are.

With `standard_conforming_strings` switched off a backslash escapes the quote after it: what policies and `grants infer`
see as one SELECT would be several commands for the server.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from pydantic import ValidationError

from orchestrator.actions.base import StepContext
from orchestrator.actions.postgres.statements import Execute, ExecuteParams, Query, QueryParams
from orchestrator.errors import OrchestratorError, StepFailed, Unreachable
from orchestrator.grants.credential import Credential
from orchestrator.grants.sql.statements import statement_verbs
from orchestrator.inference.analysis import prepared
from orchestrator.inference.live import Inference
from orchestrator.inference.workflows import open_catalogs
from orchestrator.secret import Secret

HIDDEN = "COMMIT; SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE; CREATE ROLE injected SUPERUSER; "
SMUGGLED = {
    "escaped quote": rf"SELECT 'x\''; {HIDDEN} --'",
    "dollar quote": rf"SELECT 'x\' AS a, $q$'; {HIDDEN} --$q$",
    "nested comment": rf"SELECT 'x\' /* '; {HIDDEN} -- /* n */ */",
    "continued string": f"SELECT 'a'\n'\\''; {HIDDEN} --'",
    "beside an escape string": rf"SELECT E'a\\' AS a, 'x\''; {HIDDEN} --'",
    "two backslashes and one": rf"SELECT 'a\\' AS a, 'x\''; {HIDDEN} --'",
    "in a list of values": rf"SELECT * FROM (VALUES ('x\', $$'); {HIDDEN} --$$)) AS v (a, b)",
}
"""Each is one SELECT by the SQL standard."""


@pytest.fixture
def odd_database(new_database: str) -> Iterator[str]:
    """The URL, as its superuser, of a database in which a backslash escapes; and there is `hidden()`, which writes."""
    name = new_database.rpartition("/")[2]
    with psycopg.connect(new_database, autocommit=True) as session:
        session.execute(f"ALTER DATABASE {name} SET standard_conforming_strings = off".encode())
        session.execute("CREATE TABLE written (n int)")
        session.execute(
            "CREATE FUNCTION hidden() RETURNS int LANGUAGE sql AS 'INSERT INTO written VALUES (1) RETURNING n'"
        )
    yield new_database
    with psycopg.connect(new_database, autocommit=True) as session:
        assert session.execute("SHOW standard_conforming_strings").fetchone() == ("off",)
        left = session.execute("SELECT (SELECT count(*) FROM written), to_regrole('injected')").fetchone()
        session.execute("DROP ROLE IF EXISTS injected")
    assert left == (0, None), "something was smuggled in"


def context(url: str) -> StepContext:
    parts = psycopg.conninfo.conninfo_to_dict(url)
    fields = {"username": Secret(str(parts["user"])), "password": Secret(str(parts["password"]))}
    return StepContext(
        run_id="run-1",
        workflow="w",
        step="s",
        attempt=1,
        agent="a",
        idempotency_key="k",
        deadline=time.monotonic() + 60,
        credentials={"db": Credential("db", "database", 60, connection="support", fields=fields)},
        endpoints={"support": f"postgresql://{parts['host']}:{parts['port']}/{parts['dbname']}"},
    )


@pytest.mark.parametrize("sql", SMUGGLED.values(), ids=SMUGGLED)
def test_for_the_parser_each_is_one_select(sql: str) -> None:
    assert statement_verbs(sql, placeholders=False) == {"select"}


@pytest.mark.parametrize("sql", SMUGGLED.values(), ids=SMUGGLED)
def test_inference_asks_for_one_statement_and_needs_nothing_for_a_text(odd_database: str, sql: str) -> None:
    with open_catalogs({"odd": Secret(odd_database)}) as catalogs:
        inferred = catalogs.of("odd").of(sql, placeholders=False)
    assert (inferred.privileges, inferred.notes) == ((), ())


@pytest.mark.parametrize("sql", SMUGGLED.values(), ids=SMUGGLED)
def test_inference_refuses_a_session_that_reads_otherwise(odd_database: str, sql: str) -> None:
    with psycopg.connect(odd_database, autocommit=True) as session, pytest.raises(Unreachable, match="switched off"):
        Inference(session).of(sql, placeholders=False)


@pytest.mark.parametrize("sql", SMUGGLED.values(), ids=SMUGGLED)
def test_even_then_no_second_command_comes_along(odd_database: str, sql: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "_must_mean_the_same", lambda session: None)
    with psycopg.connect(odd_database, autocommit=True) as session, pytest.raises(OrchestratorError):
        Inference(session).of(sql, placeholders=False)


def test_inference_asks_in_transactions_that_only_read_whatever_the_session_may(odd_database: str) -> None:
    options = "-c standard_conforming_strings=on"
    with (
        psycopg.connect(odd_database, autocommit=True, options=options) as session,
        prepared.prepared(session, "SELECT 1"),
        pytest.raises(psycopg.errors.ReadOnlySqlTransaction),
    ):
        session.execute("INSERT INTO written VALUES (3)")


@pytest.mark.parametrize("sql", SMUGGLED.values(), ids=SMUGGLED)
async def test_a_query_reads_the_text_and_nothing_else_happens(odd_database: str, sql: str) -> None:
    named = f"SELECT * FROM ({sql}\n) AS smuggled" if "VALUES" in sql else sql
    with_names = named.replace("SELECT '", "SELECT 1 AS one, '", 1)
    try:
        output = await Query().run(QueryParams(sql=with_names), context(odd_database))
    except StepFailed as refused:
        assert "several columns" in refused.message  # two texts without a name
    else:
        assert isinstance(output, dict)
        assert "CREATE ROLE" in str(output["rows"]) or "/*" in sql


@pytest.mark.parametrize("sql", SMUGGLED.values(), ids=SMUGGLED)
async def test_an_execution_carries_out_one_statement(odd_database: str, sql: str) -> None:
    output = await Execute().run(ExecuteParams(sql=sql), context(odd_database))
    assert isinstance(output, dict)
    assert (output["row_count"], len(output["rows"])) == (1, 1)


@pytest.mark.parametrize("how", ["SET", "set_config"])
async def test_what_the_first_execution_sets_makes_no_other_statement_of_the_next(odd_database: str, how: str) -> None:
    switch = "set_config('standard_conforming_strings', 'off', false)"
    sql = (
        rf"SELECT {switch}, 'x\' AS a, $q$' AS b, hidden() --$q$"
        if how == "set_config"
        else "SET standard_conforming_strings = off"
    )
    params = ExecuteParams(sql=sql, each=[{}, {}, {}])
    if how == "SET":  # no backslash: nothing can be read in two ways
        await Execute().run(params, context(odd_database))
        return
    with pytest.raises(StepFailed, match="switched off"):
        await Execute().run(params, context(odd_database))


@pytest.mark.parametrize("sql", ["SELECT 1\0; CREATE ROLE injected", "SELECT 'a\0b'", "\0"])
async def test_a_statement_with_a_nul_is_refused_everywhere(odd_database: str, sql: str) -> None:
    assert statement_verbs(sql, placeholders=False) == {"unknown"}
    for model in (QueryParams, ExecuteParams):
        with pytest.raises(ValidationError):
            model.model_validate({"sql": sql})
    with open_catalogs({"odd": Secret(odd_database)}) as catalogs, pytest.raises(OrchestratorError):
        catalogs.of("odd").of(sql, placeholders=False)


@pytest.mark.parametrize("sql", ["SELECT '\ud800'", "SELECT E'\\xff\\xfe'", "SELECT U&'\\d800'"])
async def test_what_is_no_text_is_an_error(odd_database: str, sql: str) -> None:
    params: Any = QueryParams.model_construct(sql=sql, parameters=None, grant=None)
    with pytest.raises(StepFailed):
        await Query().run(params, context(odd_database))
    with open_catalogs({"odd": Secret(odd_database)}) as catalogs, pytest.raises(OrchestratorError):
        catalogs.of("odd").of(sql, placeholders=False)


@pytest.mark.parametrize("action", [Query, Execute])
async def test_several_statements_are_refused_by_the_server(odd_database: str, action: Any) -> None:
    params = action.params(sql="SELECT 1; INSERT INTO written VALUES (2)")
    with pytest.raises(StepFailed, match="42601"):
        await action().run(params, context(odd_database))
