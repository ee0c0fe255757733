from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.grants.sql.parsing import with_parameters
from orchestrator.grants.sql.statements import statement_verbs


@pytest.mark.parametrize(
    ("sql", "verbs"),
    [
        ("SELECT a FROM t WHERE b LIKE %(pattern)s", "select"),
        ("table t", "select"),
        ("INSERT INTO t VALUES (%(a)s, %s)", "insert"),
        ("INSERT INTO t SELECT * FROM s", "insert select"),
        ("INSERT INTO t VALUES ((SELECT max(a) FROM s)) ON CONFLICT DO NOTHING", "insert select"),
        ("WITH gone AS (DELETE FROM t RETURNING *) SELECT * FROM gone", "delete select"),
        ("WITH a AS (WITH b AS (UPDATE t SET x = 1 RETURNING *) SELECT * FROM b) SELECT * FROM a", "select update"),
        ("MERGE INTO t USING s ON t.a = s.a WHEN MATCHED THEN DELETE", "merge"),
        ("COPY t FROM STDIN", "copy"),
        ("COPY (DELETE FROM t RETURNING 1) TO STDOUT", "copy delete"),
        ("EXPLAIN ANALYZE DELETE FROM t", "delete explain"),
        ("SELECT 1 INTO t", "ddl select"),
        ("CREATE TABLE t AS SELECT 1", "ddl select"),
        ("GRANT SELECT ON t TO u", "ddl"),
        ("TRUNCATE t", "truncate"),
        ("CALL p()", "call"),
        ("DO $$ BEGIN END $$", "call"),
        ("SET search_path = x", "set"),
        ("NOTIFY x", "other"),
        ("SELECT 1; DROP TABLE t", "ddl select"),
        ("SELEC 1", "unknown"),
        ("", "unknown"),
        ("-- nothing", "unknown"),
    ],
)
def test_the_verbs_of_a_statement(sql: str, verbs: str) -> None:
    assert statement_verbs(sql) == set(verbs.split())


def test_a_percent_sign_is_an_operator_where_there_are_no_parameters() -> None:
    assert statement_verbs("SELECT '100%s' WHERE %", placeholders=False) == {"unknown"}
    assert statement_verbs("SELECT 7 % 2 WHERE 'a%%' LIKE 'b'", placeholders=False) == {"select"}


def test_a_name_used_twice_is_one_parameter() -> None:
    assert with_parameters("%(a)s %(b)s %(a)s %% %s %s") == "$1 $2 $1 % $3 $4"


@given(st.text())
def test_any_text_has_verbs_and_never_raises(sql: str) -> None:
    assert statement_verbs(sql)
