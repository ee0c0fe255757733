"""A schema whose names are used, and system columns: granted, run with, proven, and gone again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from bench import Bench
from test_proof import of, prove

from orchestrator.actions.catalog import catalog
from orchestrator.ledger.states import RunState
from orchestrator.workflow.loader import load_text

WORKFLOW = """
version: 1
name: uses_a_schema
agent: tester
steps:
  read:
    action: postgres.query
    grants:
      db:
        kind: database
        connection: support
        privileges:
          - { select: shop.note, columns: [id, xmin] }
          - schema: '"Tool box"'
    with: { sql: 'SELECT id, xmin::text AS version, "Tool box".clean(id::text) AS text FROM shop.note' }
"""


@pytest.fixture
def database(bench: Bench) -> Iterator[Bench]:
    bench.sql('CREATE SCHEMA shop; CREATE SCHEMA "Tool box"; CREATE TABLE shop.note (id int, body text)')
    bench.sql('CREATE FUNCTION "Tool box".clean(t text) RETURNS text LANGUAGE sql AS $$SELECT btrim(t)$$')
    bench.sql("INSERT INTO shop.note VALUES (1, 'x')")
    yield bench
    bench.sql('DROP SCHEMA shop, "Tool box" CASCADE')


def test_a_schema_and_a_system_column_are_granted_and_proven(database: Bench) -> None:
    database.install(load_text(WORKFLOW, filename="w.yaml", actions=catalog).workflow)
    outcome = database.run(WORKFLOW)
    assert (outcome.state, outcome.errors) == (RunState.SUCCEEDED, {})
    proof = prove(database, text=WORKFLOW, tolerate=("EXECUTE on function *",))
    assert [each.as_json() for each in proof.grants if not each.holds] == []
    comparison = of(proof).comparison
    assert comparison is not None
    held = set(map(str, comparison.held))
    assert {'USAGE on schema "Tool box"', "SELECT on column shop.note.xmin", "SELECT on column shop.note.id"} <= held
    assert "shop.note.body" not in " ".join(held)
    database.assert_nothing_left()


def test_without_the_schema_the_step_is_refused_by_the_database(database: Bench) -> None:
    narrower = WORKFLOW.replace("""          - schema: '"Tool box"'\n""", "")
    database.install(load_text(narrower, filename="w.yaml", actions=catalog).workflow)
    outcome = database.run(narrower)
    assert outcome.state is RunState.FAILED
    assert "42501" in outcome.errors["read"].message
    database.assert_nothing_left()
