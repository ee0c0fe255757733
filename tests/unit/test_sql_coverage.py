"""What `validate` says of SQL and its grant without a database: errors where it is certain, and nothing false."""

from __future__ import annotations

import json

import pytest

from orchestrator.actions.catalog import catalog
from orchestrator.planning.coverage import coverage
from orchestrator.planning.lint import lint
from orchestrator.workflow.loader import load_text


def said(sql: str, *privileges: str, action: str = "postgres.query") -> list[str]:
    """The findings, each with its severity in front."""
    text = (
        f"version: 1\nname: w\nagent: a\nsteps:\n  one:\n    action: {action}\n    grants:\n      db:\n"
        f"        kind: database\n        connection: c\n        privileges: [{', '.join(privileges)}]\n"
        f"    with: {{ sql: {json.dumps(sql)} }}\n"
    )
    found = coverage(load_text(text, filename="w.yaml", actions=catalog))
    return [f"{problem.severity}: {problem.message}" for problem in found]


BASKET = "{ select: shop.basket, columns: [id] }"


def test_a_table_without_a_schema_is_the_one_that_the_grant_names() -> None:
    assert said("SELECT id FROM basket", BASKET) == []
    assert said("SELECT id, note FROM basket", BASKET) == [
        "error: the SQL needs `select (note) on shop.basket`, which the grant `db` does not declare"
    ]
    assert said("SELECT id FROM basket", "{ select: shop.basket, columns: [id, note] }") == [
        "warning: the SQL does not need `select (note) on shop.basket`"
    ]
    assert said("SELECT id FROM shelf", BASKET) == [
        "error: the SQL needs `select (id) on shelf`, which the grant `db` does not declare",
        "warning: the SQL does not name the table of `select (id) on shop.basket`",
    ]
    assert said("SELECT id FROM public.basket", BASKET)[0] == (
        "error: the SQL needs `select (id) on public.basket`, which the grant `db` does not declare"
    )


def test_of_two_tables_with_the_name_either_may_be_meant() -> None:
    other = "{ select: archive.basket, columns: [id, note] }"
    assert said("SELECT id, note FROM basket", BASKET, other) == []
    assert said("SELECT id, day FROM basket", BASKET, other) == [
        "warning: the SQL does not need `select (note) on archive.basket`"
    ]


def test_an_output_column_with_the_name_of_a_column_does_not_make_that_superfluous() -> None:
    days = "{ select: t, columns: [created_at, id] }"
    sql = "SELECT date_trunc('day', created_at) AS created_at, count(id) AS n FROM t GROUP BY 1"
    assert said(sql, days) == []
    assert said("SELECT count(id) FROM t ORDER BY count", "{ select: t, columns: [id] }") == []
    assert said("SELECT lower(id) FROM t ORDER BY lower", "{ select: t, columns: [id] }") == []
    assert said("SELECT id AS x FROM t ORDER BY x", "{ select: t, columns: [id] }") == []
    assert said("SELECT id FROM t ORDER BY x", "{ select: t, columns: [id] }") == [
        "error: the SQL needs `select (x) on public.t`, which the grant `db` does not declare"
    ]


def test_what_is_written_like_a_column_of_a_row_may_be_a_function_and_is_a_warning_only() -> None:
    assert said("SELECT p.age FROM t p", "{ select: t, columns: [born] }") == [
        "warning: the SQL needs `select (age) on public.t`, which the grant `db` does not declare, "
        "unless that is a function of the row"
    ]
    assert said("SELECT p.born FROM t p", "{ select: t, columns: [born, id] }") == [
        "warning: the SQL does not need `select (id) on public.t`"
    ]


@pytest.mark.parametrize(
    ("sql", "grant"),
    [
        ("SELECT ctid FROM t", "{ select: t, columns: [id] }"),
        ("SELECT t FROM t", "{ select: t, columns: [id, born] }"),
        ("SELECT age(p) FROM t p", "{ select: t, columns: [id, born] }"),
        ("SELECT x FROM t AS p (x)", "{ select: t, columns: [id] }"),
        ("SELECT n FROM t, generate_series(1, id) n", "{ select: t, columns: [id] }"),
        ("WITH t AS (SELECT 1 AS id) SELECT id FROM t", "{ select: t, columns: [id] }"),
        ("SELECT count(*) FROM t ORDER BY count", "{ select: t, columns: [id] }"),
    ],
)
def test_where_it_is_not_certain_nothing_is_said(sql: str, grant: str) -> None:
    assert [each for each in said(sql, grant) if "does not name" not in each] == []


def test_a_catalog_that_the_sql_names_is_named() -> None:
    assert said("SELECT rolname FROM pg_authid", "{ select: pg_catalog.pg_authid, columns: [rolname] }") == []


def test_a_table_in_a_with_that_nothing_carries_out_is_not_said_to_be_needed() -> None:
    first, other = "{ select: t, columns: [id] }", "{ select: other, columns: [id] }"
    chain = "WITH a AS (SELECT id FROM other), b AS (SELECT 1 FROM a)"
    assert said(f"{chain} SELECT id FROM t", first) == []
    assert said(f"{chain} SELECT id FROM t, b", first) == [
        "error: the SQL needs `select on other`, which the grant `db` does not declare"
    ]
    assert said(f"{chain} SELECT id FROM t", first, other) == []
    deleting = "WITH a AS (DELETE FROM other) SELECT id FROM t"
    assert said(deleting, first, action="postgres.execute") == [
        "error: the SQL needs `delete on other`, which the grant `db` does not declare"
    ]


@pytest.mark.parametrize(
    ("sql", "parameters", "told"),
    [
        ("SELEC id FROM t", None, 'syntax error at or near "SELEC"'),
        ("SELECT order, id FROM t", None, 'syntax error at or near ","'),
        ("SELECT id\nFROM t\nWHER id = 1", None, 'syntax error at or near "id", in its line 3'),
        ("SELECT id FROM t LIMI %(most)s", "{ most: 1 }", 'syntax error at or near "%(most)s"'),
        ("SELECT id FROM t LIMI %s", "[1]", 'syntax error at or near "%s"'),
        ("SELECT id FROM t WHERE (id", None, "syntax error at end of input"),
        ("SELECT 'open", None, 'unterminated quoted string at or near "\'open"'),
    ],
)
def test_sql_that_cannot_be_parsed_is_an_error_with_the_word_and_the_line(
    sql: str, parameters: str | None, told: str
) -> None:
    more = "" if parameters is None else f", parameters: {parameters}"
    text = (
        "version: 1\nname: w\nagent: a\nsteps:\n  one:\n    action: postgres.query\n    grants:\n"
        f"      db: {{ kind: database, connection: c, privileges: [{BASKET}] }}\n"
        f"    with: {{ sql: {json.dumps(sql)}{more} }}\n"
    )
    (problem,) = lint(load_text(text, filename="w.yaml", actions=catalog))
    assert (problem.severity, problem.message) == ("error", f"the SQL cannot be parsed: {told}")
    assert problem.line == 9
