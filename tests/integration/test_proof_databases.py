"""Proofs on databases as they are: more schemas than one, what PUBLIC holds, and names that need quotes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from bench import Bench
from test_proof import excess, of, prove

from orchestrator.actions.catalog import catalog
from orchestrator.proof.forbidden import Trial, Verdict
from orchestrator.proof.report import Proof
from orchestrator.workflow.loader import load_text


@pytest.fixture
def database(bench: Bench) -> Iterator[Bench]:
    """The support database, in which a test may leave schemas called aaa_*, `Odd`... and tables called aaa_*."""
    yield bench
    for name in bench.sql("SELECT quote_ident(nspname) FROM pg_namespace WHERE nspname ~* '^(aaa_|odd )'"):
        bench.sql(f"DROP SCHEMA {name} CASCADE")
    for name in bench.sql("SELECT oid::regclass::text FROM pg_class WHERE relname ~ '^aaa_' AND relkind = 'r'"):
        bench.sql(f"DROP TABLE {name}")
    bench.sql("REVOKE TEMPORARY ON DATABASE support FROM PUBLIC")
    bench.sql("REVOKE CREATE ON SCHEMA public FROM PUBLIC")


def trials(proof: Proof) -> dict[str, Trial]:
    return {trial.what: trial for trial in of(proof).trials}


@pytest.mark.parametrize("step", ["read", "record"])
def test_a_schema_that_the_login_may_not_use_is_what_the_trial_is_for(database: Bench, step: str) -> None:
    database.sql("CREATE SCHEMA aaa_internal")
    database.sql("CREATE TABLE aaa_internal.thing (id int, note text)")
    database.sql('CREATE TABLE aaa_internal."Odd \'one" ("Some ""column" int)')
    proof = prove(database, step)
    assert [each.as_json() for each in proof.grants if not each.holds] == []
    tried = trials(proof)["select on aaa_internal.Odd 'one"]
    assert (tried.verdict, tried.answer) == (Verdict.REFUSED, "permission denied for schema aaa_internal")
    assert {trial.verdict for trial in of(proof).trials} == {Verdict.REFUSED}


PUBLIC_HOLDS = {
    "temporary tables": ("GRANT TEMPORARY ON DATABASE support TO PUBLIC", "create a temporary table"),
    "a table to read": ("GRANT SELECT ON aaa_reference TO PUBLIC", "select on public.aaa_reference"),
    "one column to read": ("GRANT SELECT (id) ON aaa_reference TO PUBLIC", "select on public.aaa_reference"),
    "a table to write": ("GRANT INSERT, UPDATE ON aaa_reference TO PUBLIC", "update on public.aaa_reference"),
    "one column to write": ("GRANT UPDATE (id) ON aaa_reference TO PUBLIC", "update on public.aaa_reference"),
    "rows to delete": ("GRANT DELETE ON aaa_reference TO PUBLIC", "delete on public.aaa_reference"),
    "a table to empty": ("GRANT TRUNCATE ON aaa_reference TO PUBLIC", "truncate"),
    "a schema to create in": ("GRANT CREATE ON SCHEMA public TO PUBLIC", "create a table in public"),
}


@pytest.mark.parametrize("held", PUBLIC_HOLDS)
def test_what_everybody_may_do_is_a_finding_about_public_or_tolerated_and_no_trial(database: Bench, held: str) -> None:
    statement, what = PUBLIC_HOLDS[held]
    database.sql("CREATE TABLE aaa_reference (id int)")
    database.sql(statement)
    proof = prove(database, "read")
    assert not proof.holds
    assert excess(proof)
    assert all(each.endswith(" through PUBLIC") for each in excess(proof))
    found = trials(proof)[what]
    assert found.verdict is Verdict.ALLOWED
    assert found.answer.startswith("the server did it: ")
    assert found.answer.endswith(" through PUBLIC")

    tolerant = prove(database, "read", tolerate=("*",))
    assert [each.as_json() for each in tolerant.grants if not each.holds] == []
    verdicts = {trial.verdict for trial in of(tolerant).trials}
    assert Verdict.REFUSED in verdicts
    assert verdicts <= {Verdict.REFUSED, Verdict.NOT_TRIED}
    tried = [trial.what for trial in of(tolerant).trials if trial.verdict is Verdict.REFUSED]
    for kind in ("select on", "insert on", "update on", "delete on"):
        assert any(each.startswith(kind) for each in tried), "another table takes its place"


def test_where_nothing_is_left_to_try_that_is_said(database: Bench) -> None:
    database.sql("GRANT TEMPORARY ON DATABASE support TO PUBLIC")
    tables = database.sql(
        "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = 'public' AND c.relkind = 'r'"
    )
    database.sql(f"GRANT SELECT ON {', '.join(tables)} TO PUBLIC")
    try:
        proof = prove(database, "read", tolerate=("SELECT on *", "TEMPORARY on *"))
    finally:
        database.sql(f"REVOKE SELECT ON {', '.join(tables)} FROM PUBLIC")
    assert [each.as_json() for each in proof.grants if not each.holds] == []
    left = [(trial.what, trial.answer) for trial in of(proof).trials if trial.verdict is Verdict.NOT_TRIED]
    assert left == [
        ("select on another table", "everybody may, which is tolerated"),
        ("select another column of public.customer_feedback", "everybody may, which is tolerated"),
        ("create a temporary table", "everybody may, which is tolerated"),
    ]


ODD = r"""
CREATE SCHEMA "Odd group";
CREATE TABLE "Odd group"."order" (
    "user" int, "position" text, "Mixed Case" text, "quo""te" text, "a$b" text, "grün" text, "select" text, plain text
);
CREATE TABLE "Odd group"."table" (id int);
CREATE SEQUENCE "Odd group"."sequence one";
CREATE FUNCTION "Odd group"."user"(a int) RETURNS int LANGUAGE sql AS 'SELECT 1';
REVOKE EXECUTE ON FUNCTION "Odd group"."user"(int) FROM PUBLIC;
"""

READS_ODD = r"""
version: 1
name: reads_odd
agent: tester
steps:
  read:
    action: postgres.query
    grants:
      db:
        kind: database
        connection: support
        privileges:
          - select: '"Odd group"."order"'
            columns: ['user', 'position', 'Mixed Case', 'quo"te', 'a$b', 'grün']
          - { insert: '"Odd group"."order"', columns: ['user', 'select'] }
          - { delete: '"Odd group"."table"' }
          - { usage: '"Odd group"."sequence one"' }
          - { execute: '"Odd group"."user"(int)' }
    with: { sql: "SELECT 1 AS one" }
"""


@pytest.mark.parametrize("quoting", ["off", "on"])
def test_names_that_need_quotes_are_the_same_on_both_sides(database: Bench, quoting: str) -> None:
    for statement in filter(str.strip, ODD.split(";")):
        database.sql(statement)
    database.install(load_text(READS_ODD, filename="odd.yaml", actions=catalog).workflow)
    database.sql(f"ALTER DATABASE support SET quote_all_identifiers = {quoting}")
    try:
        proof = prove(database, text=READS_ODD)
    finally:
        database.sql("ALTER DATABASE support RESET quote_all_identifiers")
    assert [each.as_json() for each in proof.grants if not each.holds] == []
    tried = trials(proof)
    assert {trial.verdict for trial in tried.values()} == {Verdict.REFUSED}
    assert "select the column select of Odd group.order" in tried


def test_a_function_whose_schema_was_closed_is_missing_and_no_error(database: Bench) -> None:
    for statement in filter(str.strip, ODD.split(";")):
        database.sql(statement)
    loaded = load_text(READS_ODD, filename="odd.yaml", actions=catalog)
    database.install(loaded.workflow)
    (role,) = database.sql(
        "SELECT DISTINCT a.grantee::regrole::text FROM pg_namespace n, aclexplode(n.nspacl) a"
        " WHERE n.nspname = 'Odd group' AND a.grantee <> n.nspowner"
    )
    database.sql(f'REVOKE USAGE ON SCHEMA "Odd group" FROM {role}')
    comparison = of(prove(database, text=READS_ODD)).comparison
    assert comparison is not None
    assert 'USAGE on schema "Odd group"' in map(str, comparison.missing)
