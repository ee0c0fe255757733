"""Databases of any encoding, and clients told to use another: every session of ours speaks UTF-8."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from bench import ROOT, Bench, prepare
from test_proof import prove

from orchestrator.actions.catalog import catalog
from orchestrator.devstack.postgres import Postgres
from orchestrator.devstack.stack import DevStack
from orchestrator.errors import ExitCode, LedgerError, ProvisionError
from orchestrator.inference.workflows import open_catalogs
from orchestrator.ledger.opening import open_reader
from orchestrator.ledger.states import StepState
from orchestrator.runs.types import RunOutcome
from orchestrator.secret import Secret
from orchestrator.workflow.loader import load_text

SCHEMA = (ROOT / "workflows" / "data" / "schema.sql").read_text()
SETUP = """
CREATE TABLE person (id int PRIMARY KEY, "grün" text, name text, body jsonb);
INSERT INTO person VALUES (1, 'wie Gras', 'Zoë', '{"ü": "ö"}'), (2, 'blau', 'Bob', NULL);
"""

READS = """
version: 1
name: reads_people
agent: tester
inputs: { name: { type: string, default: Zoë } }
steps:
  read:
    action: postgres.query
    grants:
      db: { kind: database, connection: support, privileges: [ { select: person, columns: all } ] }
    with:
      sql: __SQL__
      parameters: { name: "${{ inputs.name }}" }
    outputs: [rows]
"""

LIMITED = """
version: 1
name: reads_one_person
agent: tester
inputs: { name: { type: string } }
steps:
  read:
    action: postgres.query
    grants:
      db:
        kind: database
        connection: support
        privileges:
          - { select: person, columns: all, where: { name: "${{ inputs.name }}", "grün": wie Gras } }
    with: { sql: "SELECT id FROM person" }
    outputs: [rows]
"""


@pytest.fixture(scope="module", params=["LATIN1", "SQL_ASCII"])
def encoded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, nothing_escapes: None
) -> Iterator[Bench]:
    """A stack whose support database has another encoding."""
    directory = tmp_path_factory.mktemp("encoded")
    with DevStack(directory / "stack") as info:
        with psycopg.connect(info.admin_dsn.reveal(), autocommit=True) as session:
            session.execute(
                f"CREATE DATABASE encoded ENCODING '{request.param}' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"
            )
        dsn = info.support_dsn.reveal().replace("/support", "/encoded", 1)
        with psycopg.connect(dsn, client_encoding="UTF8") as session:
            session.execute("\n".join(line for line in SCHEMA.splitlines() if not line.startswith("CREATE ROLE")))
            session.execute("REVOKE ALL ON DATABASE encoded FROM PUBLIC")
            session.execute(SETUP)
        there = replace(
            info,
            support_endpoint=info.support_endpoint.replace("/support", "/encoded", 1),
            support_dsn=Secret(dsn),
        )
        yield prepare(there, directory)


@pytest.fixture(params=["", "SQL_ASCII", "LATIN1"], ids=lambda name: name or "as it is")
def asked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the environment tells libpq to ask for."""
    if request.param:
        monkeypatch.setenv("PGCLIENTENCODING", request.param)
    return str(request.param)


@pytest.fixture
def people(encoded: Bench, asked: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    bench = replace(encoded, directory=tmp_path_factory.mktemp("people"), events=[])
    yield bench
    bench.sql("DELETE FROM person WHERE id > 2")
    bench.assert_nothing_left()


def run(bench: Bench, sql: str, **how: Any) -> RunOutcome:
    return bench.run(READS.replace("__SQL__", f"'{sql}'"), **how)


def rows(bench: Bench, outcome: RunOutcome) -> Any:
    assert outcome.exit_code is ExitCode.DONE, {name: error.message for name, error in outcome.errors.items()}
    output = next(event.outputs for event in reversed(bench.events) if event.kind == "step.finished")
    assert isinstance(output, dict)
    return output["rows"]


def test_texts_names_and_parameters_arrive_as_they_are(people: Bench) -> None:
    sql = 'SELECT "grün", name, ROW(id, name) AS row, body, ARRAY[name] AS all FROM person WHERE name = %(name)s'
    assert rows(people, run(people, sql)) == [
        {"grün": "wie Gras", "name": "Zoë", "row": "(1,Zoë)", "body": {"ü": "ö"}, "all": ["Zoë"]}
    ]


def test_a_row_limit_may_have_any_character_in_its_name_and_value(people: Bench) -> None:
    assert rows(people, people.run(LIMITED, inputs={"name": "Zoë"})) == [{"id": 1}]


def test_what_was_provisioned_is_right_and_proven(people: Bench) -> None:
    workflows = [load_text(text, filename="x.yaml", actions=catalog).workflow for text in (LIMITED,)]
    people.install(workflows[0])
    with people.provisioning(workflows) as work:
        assert work.plan() == []
    proof = prove(people, text=LIMITED, inputs={"name": "Zoë"})
    assert [each.as_json() for each in proof.grants if not each.holds] == []


def test_grants_are_inferred_with_their_right_names(people: Bench) -> None:
    with open_catalogs({"support": people.info.support_dsn}) as catalogs:
        found = catalogs.of("support").of('SELECT "grün" FROM person WHERE name = %(name)s')
    assert [each.describe() for each in found.privileges] == ["select (grün, name) on public.person"]


def test_a_character_that_the_database_cannot_hold_fails_the_step_and_says_so(people: Bench) -> None:
    outcome = run(people, "SELECT %(name)s::text AS it", inputs={"name": "10 €"})
    if people.sql("SHOW server_encoding") == ["SQL_ASCII"]:
        assert rows(people, outcome) == [{"it": "10 €"}]
        return
    error = outcome.errors["read"]
    assert outcome.steps["read"] is StepState.FAILED
    assert error.message == "untranslatable character (SQLSTATE 22P05)"
    assert "the encoding of the database has no such character" in str(error.hint)


def test_bytes_that_are_no_utf_8_fail_the_step_and_say_so(people: Bench) -> None:
    if people.sql("SHOW server_encoding") != ["SQL_ASCII"]:
        people.sql(r"INSERT INTO person (id, name) VALUES (3, convert_from('\x67fc6e', 'LATIN1'))")
        assert rows(people, run(people, "SELECT name FROM person WHERE id = 3")) == [{"name": "gün"}]
        return
    people.sql(r"INSERT INTO person (id, name) VALUES (3, convert_from('\x67fc6e', 'SQL_ASCII'))")
    for expression in ("name", "ARRAY[name]", "ROW(name)", "to_jsonb(name)"):
        outcome = run(people, f"SELECT {expression} AS it FROM person WHERE id = 3")
        error = outcome.errors["read"]
        assert outcome.steps["read"] is StepState.FAILED
        assert error.message == "character not in repertoire (SQLSTATE 22021)"
        assert "convert_from" in str(error.hint)
    converted = str(error.hint).split("`")[1].replace("'", "''")
    assert rows(people, run(people, f"SELECT {converted} AS it FROM person WHERE id = 3")) == [{"it": "gün"}]


def test_a_name_that_is_no_utf_8_is_said_by_provisioning(people: Bench) -> None:
    if people.sql("SHOW server_encoding") != ["SQL_ASCII"]:
        return
    loaded = load_text(LIMITED, filename="x.yaml", actions=catalog)
    with psycopg.connect(people.info.support_dsn.reveal(), client_encoding="SQL_ASCII", autocommit=True) as session:
        session.execute(b'ALTER TABLE person ADD COLUMN "gr\xfcn 2" text')
        try:
            with people.provisioning([loaded.workflow]) as work, pytest.raises(ProvisionError, match="no UTF-8"):
                work.plan()
        finally:
            session.execute(b'ALTER TABLE person DROP COLUMN "gr\xfcn 2"')


@pytest.mark.usefixtures("asked")
def test_an_ordinary_database_and_the_ledger_do_not_mind_what_the_environment_asks_for(bench: Bench) -> None:
    bench.sql("CREATE DATABASE utf8_ledger")
    ledger = bench.info.support_dsn.reveal().replace("/support", "/utf8_ledger", 1)
    text = """
version: 1
name: ordinary
agent: Zoë 日本
steps:
  read:
    action: postgres.query
    grants: { db: { kind: database, connection: support, role: feedback-read } }
    with: { sql: "SELECT '日本 €'::text AS it, ROW('ö'::text) AS row", grant: db }
    outputs: [rows]
"""
    try:
        outcome = bench.run(text, ledger_url=ledger)
        assert rows(bench, outcome) == [{"it": "日本 €", "row": "(ö)"}]
    finally:
        bench.sql("DROP DATABASE utf8_ledger WITH (FORCE)")


def test_a_ledger_is_kept_where_every_text_can_be_and_nowhere_else(people: Bench) -> None:
    encoding = people.sql("SHOW server_encoding")[0]
    people.sql(f"CREATE DATABASE ledger ENCODING '{encoding}' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
    url = people.info.support_dsn.reveal().replace("/encoded", "/ledger", 1)
    text = READS.replace("agent: tester", "agent: Zoë 日本").replace("__SQL__", "'SELECT %(name)s::text AS it'")
    try:
        if encoding != "SQL_ASCII":
            with pytest.raises(LedgerError, match=f"the encoding {encoding}, which cannot hold every text"):
                people.run(text, ledger_url=url)
            return
        assert rows(people, people.run(text, ledger_url=url)) == [{"it": "Zoë"}]
        with open_reader(url) as reader:
            assert [run.agent for run in reader.runs()] == ["Zoë 日本"]
    finally:
        people.sql("DROP DATABASE ledger WITH (FORCE)")


def test_an_encoding_that_no_server_knows_may_stand_in_the_environment(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "no_such_encoding")
    text = READS.replace("__SQL__", "'SELECT %(name)s::text AS it'").replace("select: person", "select: ticket")
    assert rows(bench, bench.run(text)) == [{"it": "Zoë"}]
    with Postgres(tmp_path / "own", durable=False) as server:
        assert server.pid > 0
