"""SQL that would overflow the stack of PostgreSQL's parser is refused before it, wherever SQL is looked into."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.grants.sql.parsing import (
    MAX_CHAINED,
    MAX_CHARACTERS,
    MAX_JOINED,
    MAX_NESTING,
    MAX_SIGNS,
    TooLargeSql,
    UnreadableSql,
    deparse,
    parse,
    with_parameters,
)
from orchestrator.grants.sql.statements import statement_verbs
from orchestrator.inference.analysis.bodies import body_statements
from orchestrator.inference.analysis.plpgsql import computation
from orchestrator.inference.offline import certain
from orchestrator.inference.statements import Dynamic, split

DEEP: dict[str, Callable[[int], str]] = {
    "sums": lambda size: "select 1" + "+1" * size,
    "concatenations": lambda size: "select a" + " || 'x'" * size,
    "set operations": lambda size: "select 1" + " union select 1" * size,
    "set operations with commas": lambda size: "select 1, 2" + " union select 1, 2" * size,
    "intersections in brackets": lambda size: "(" * size + "select 1" + ") except select 1" * size,
    "negations": lambda size: "select " + "not " * size + "true",
    "cases": lambda size: "select " + "case when true then " * size + "1" + " end" * size,
    "cases that close early": lambda size: "select " + "case when a.end then " * size + "1" + " end" * size,
    "labels named end": lambda size: "select " + "(select 1 as end, " * size + "1" + ")" * size,
    "subqueries": lambda size: "select " + "(select " * size + "1" + ")" * size,
    "tables": lambda size: "select 1 from " + "(select 1 from " * size + "t" + ") x" * size,
    "calls": lambda size: "select " + "f(" * size + "1" + ")" * size,
    "casts": lambda size: "select 1" + "::int" * size,
    "arrays": lambda size: "select " + "array[" * size + "1" + "]" * size,
    "joins": lambda size: "select 1 from t" + " join t on true and true" * size,
    "common tables": lambda size: "with x as (" * size + "select 1" + ") select 1" * size,
    "lists": lambda size: "select " + "1 in (" * size + "1" + ")" * size,
    "tests for null": lambda size: "select 1" + " is null" * size,
    "ranges": lambda size: "select 1" + " between 1 and 1 is null" * size,
    "collations": lambda size: "select a" + ' collate "x"' * size,
    "rows": lambda size: "select " + "row(1, " * size + "1" + ")" * size,
    "filters": lambda size: "select " + "f() filter (where " * size + "true" + ")" * size,
    "brackets": lambda size: "select " + "(" * size + "1" + ")" * size,
    "comments between": lambda size: "select 1" + "/* , */+1" * size,
    "time zones": lambda size: "select a" + " at time zone 'x'" * size,
    "sums in brackets": lambda size: "select " + ("1+" * 10 + "(") * (size // 20) + "1" + ")" * (size // 20),
    "conditions": lambda size: "select " + "(a and (b or " * size + "c" + "))" * size,
}


def plpgsql(body: str) -> tuple[str, str]:
    return f"CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS $b${body}$b$", body


@pytest.mark.parametrize("levels", [90, 5_000])
def test_blocks_within_each_other_are_read_as_far_as_the_parser_can(levels: int) -> None:
    body = "BEGIN " + "IF true THEN " * levels + "RETURN 1; " + "END IF; " * levels + "END"
    assert (computation(*plpgsql(body)) is None) == (levels > 90)


@pytest.mark.parametrize("shape", DEEP)
@pytest.mark.parametrize("size", [600, 4_000])
def test_what_is_too_deep_is_refused_before_the_parser(shape: str, size: int) -> None:
    sql = DEEP[shape](size)
    with pytest.raises(TooLargeSql, match="too large"):
        parse(sql)
    assert statement_verbs(sql, placeholders=False) == {"unknown"}
    assert certain(sql) is None
    with pytest.raises(TooLargeSql):
        split(sql)
    (part,) = body_statements(f"RETURN ({sql})")
    assert isinstance(part, Dynamic)
    assert computation(*plpgsql(f"BEGIN RETURN ({sql}); END")) is None


@pytest.mark.parametrize(
    "sql",
    ["select 1" + "+1" * 100_000, "select 1" + " union select 1" * 30_000, "select '" + "a" * MAX_CHARACTERS + "'"],
    ids=["sums", "unions", "a long text"],
)
def test_what_is_too_long_is_refused(sql: str) -> None:
    with pytest.raises(TooLargeSql):
        parse(sql)


@pytest.mark.parametrize(
    ("make", "limit", "told"),
    [
        (lambda size: "select " + "(" * size + "1" + ")" * size, MAX_NESTING, "within each other"),
        (lambda size: "select " + "case when a then " * size + "1" + " end" * size, MAX_NESTING, "within each other"),
        (lambda size: "select 1, 2" + " union select 1, 2" * size, MAX_JOINED, "JOIN or UNION"),
        (lambda size: "select -" + " -" * (size - 3) + " 1", MAX_CHAINED, "without a comma"),
    ],
    ids=["brackets", "cases", "unions", "signs"],
)
def test_each_bound_is_where_it_is_said_to_be(make: Callable[[int], str], limit: int, told: str) -> None:
    assert parse(make(limit))
    with pytest.raises(TooLargeSql, match=told):
        parse(make(limit + 1))


@pytest.mark.parametrize(
    "sql",
    [
        "select " + ", ".join(f"t.column_{number}" for number in range(1_500)) + " from t",
        "insert into t values " + ", ".join(f"({number}, 'x', now())" for number in range(1_500)),
        "select 1 from t where " + " and ".join(f"a{number} = {number}" for number in range(1_500)),
        "select 1 from t where a in (" + ", ".join(map(str, range(5_000))) + ")",
        "select case " + " ".join(f"when a = {number} then {number}" for number in range(1_000)) + " else 0 end from t",
        "; ".join(f"select a from t{number}" for number in range(2_000)),
        "select 1 from t" + "".join(f" join t{number} on t{number}.id = t.id and true" for number in range(90)),
        "select 1" + "".join(f" union all select {number}, 2" for number in range(90)),
        "select " + " || ".join(["a"] * 190),
        "select 1 where a between 1 and 2 and b between 2 and 3",
    ],
    ids=lambda sql: sql[:24],
)
def test_what_people_write_is_let_through(sql: str) -> None:
    assert parse(sql)


SIGNS = {
    "plus": "select " + "+" * 90_000 + "1",
    "plus and minus": "select " + "+-" * 45_000 + "1",
    "comments in comments": "/*" * 24_000 + "*/" * 24_000 + "select 1",
    "stars": "select " + "*" * 90_000,
    "rows just short of it": "select 1" + (" " + "+" * MAX_SIGNS) * 190,
    "rows over lines": "select 1" + ("\n" + "-+" * (MAX_SIGNS // 2)) * 190,
}


@pytest.mark.parametrize("kind", SIGNS)
def test_no_row_of_signs_holds_up_the_process(kind: str) -> None:
    """Without a bound each takes the lexer half a minute."""
    told = "signs in a row" if "rows" not in kind else "words and signs without a comma"
    with pytest.raises(TooLargeSql, match=told):
        parse(SIGNS[kind])


@pytest.mark.parametrize(
    "sql",
    [
        "/" + "*" * 300 + "/ select 1 /" + "-" * 300 + "/*/ + 2",
        "-" * 400 + "\nselect 1",
        "select 1 operator(pg_catalog.+) 2 <-> 3",
    ],
)
def test_banners_and_operators_are_let_through(sql: str) -> None:
    try:
        parse(sql)
    except UnreadableSql as error:
        assert not isinstance(error, TooLargeSql)


@pytest.mark.parametrize("sql", ["select 1\0; drop table t", "select '\ud800'", "select 'a", "select $a$", "selec"])
def test_what_cannot_be_read_is_unknown(sql: str) -> None:
    with pytest.raises(UnreadableSql):
        parse(sql)
    assert statement_verbs(sql) == {"unknown"}


def test_a_quote_with_a_name_in_another_script_hides_nothing() -> None:
    deep = "+1" * 600
    for between in ("$é$ $z$ $é$", "$é$ $zye9y$ $é$", "$z$ $é$ $z$"):
        with pytest.raises(TooLargeSql):
            parse(f"select {between} || 1 {deep} || {between}")
        assert parse(f"select {between[:3]} {deep} {between[:3]} || 'é'")


def test_other_scripts_take_no_more_work() -> None:
    """Each token was once looked for from the beginning: minutes, for 90,000 characters."""
    with pytest.raises(UnreadableSql):
        parse("é; " * 33_000)
    with pytest.raises(TooLargeSql):
        parse("select 'é'; " * 8_000)
    assert len(parse("select 'zé' as zoë; " * 4_000)) == 4_000


CHILD = """
import sys, threading
from test_sql_bounds import DEEP
from orchestrator.grants.sql.parsing import UnreadableSql, deparse, parse
def go():
    let = 0
    for make in DEEP.values():
        for size in (*range(20, 200, 6), 250, 399):
            for sql in (make(size), "select (" * 8 + make(size) + ")" * 8, make(size) + " union " + make(size // 2)):
                try:
                    (raw, *_) = parse(sql)
                    let += 1
                    deparse(raw.stmt)
                except UnreadableSql:
                    pass
    print("alive" if let > 400 else f"only {let} were let through")
threading.stack_size(512 * 1024)
thread = threading.Thread(target=go)
thread.start()
thread.join()
"""


def test_the_deepest_that_is_let_through_fits_on_a_small_stack() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", CHILD],
        cwd=Path(__file__).parent,
        env={"PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout.strip()) == (0, "alive"), ran.stderr[-500:]


def test_a_statement_too_deep_to_be_written_is_an_error_of_ours() -> None:
    (raw,) = parse("select 1" + "+1" * 190)
    limit = sys.getrecursionlimit()
    try:
        sys.setrecursionlimit(250)
        with pytest.raises(TooLargeSql):
            deparse(raw.stmt)
    finally:
        sys.setrecursionlimit(limit)


def test_a_text_that_is_too_long_is_not_even_looked_through_for_placeholders() -> None:
    assert statement_verbs("%(" * 10_000_000) == {"unknown"}
    assert with_parameters("%(name)s %(name)s %s %% %(") == "$1 $1 $2 % %("
