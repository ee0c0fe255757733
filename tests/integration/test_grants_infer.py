"""`orchestrator grants infer` on a real PostgreSQL: what it shows, what it writes, and what it refuses to guess."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from bench import ROOT, Bench
from psycopg import sql

from orchestrator.actions.catalog import catalog
from orchestrator.cli.main import main
from orchestrator.errors import ExitCode
from orchestrator.grants.models import DatabaseGrant
from orchestrator.grants.privileges import Privilege, merge
from orchestrator.workflow.loader import load

SAMPLES = sorted((ROOT / "workflows").glob("*.yaml"))
Infer = Callable[..., tuple[int, str, str]]

SCHEMA = """
CREATE SCHEMA "Odd 'Schema'";
CREATE TABLE "Odd 'Schema'"."a: ""b"" #c" ("true" integer PRIMARY KEY, "it's, [x]" text, "größe" text, "*" text);
CREATE FUNCTION "Odd 'Schema'".twice(integer) RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT $1 * 2';
CREATE FUNCTION "Odd 'Schema'".dynamic(text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN EXECUTE $1; END $$;
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA "Odd 'Schema'" FROM PUBLIC;
CREATE FUNCTION "Odd 'Schema'".open(integer) RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT $1';
GRANT USAGE ON SCHEMA "Odd 'Schema'" TO PUBLIC;
"""


@pytest.fixture(scope="module")
def catalog_login(prepared: Bench) -> Iterator[str]:
    """The DSN of a login that may connect, and nothing else; beside objects with hostile names."""
    info = prepared.info
    with psycopg.connect(info.support_dsn.reveal(), autocommit=True) as admin:
        admin.execute(SCHEMA.encode())
        admin.execute("CREATE ROLE catalog_reader LOGIN PASSWORD 'reads-the-catalog'")
        admin.execute("GRANT CONNECT ON DATABASE support TO catalog_reader")
        yield f"postgresql://catalog_reader:reads-the-catalog@{info.postgres_host}:{info.postgres_port}/support"
        admin.execute("DROP OWNED BY catalog_reader; DROP ROLE catalog_reader")
        admin.execute("DROP SCHEMA \"Odd 'Schema'\" CASCADE")


@pytest.fixture
def infer(catalog_login: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Infer:
    """Runs the command in this process; its exit code, standard output and standard error."""
    monkeypatch.setenv("ORCHESTRATOR_CATALOG_DATABASES__SUPPORT", catalog_login)

    def run(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(["grants", "infer", *map(str, arguments)])
        shown = capfd.readouterr()
        assert "reads-the-catalog" not in shown.out + shown.err
        return code, shown.out, shown.err

    return run


@pytest.fixture
def workflow(tmp_path: Path) -> Callable[..., Path]:
    """Writes a workflow of one step `work`, or of the steps that are given."""

    def write(sql: str, privileges: str = "", *, action: str = "postgres.query", more: str = "", top: str = "") -> Path:
        grants = (
            f"\n    grants: {{ db: {{ kind: database, connection: support, {privileges} }} }}" if privileges else ""
        )
        file = tmp_path / "workflow.yaml"
        file.write_text(
            f"version: 1\nname: test_of_inference\nagent: tester\n{top}\nsteps:\n"
            f"  work:\n    action: {action}{grants}\n    with:\n      sql: {json.dumps(sql)}\n{more}"
        )
        return file

    return write


def steps_of(shown: str) -> dict[str, Any]:
    return {step["step"]: step for step in json.loads(shown)["steps"]}


def declared(file: Path, step: str = "work") -> tuple[Privilege, ...]:
    grant = load(file, actions=catalog).workflow.steps[step].grants["db"]
    assert isinstance(grant, DatabaseGrant)
    return merge(each.privilege() for each in grant.privileges)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_every_sample_declares_exactly_what_its_sql_needs(infer: Infer, sample: Path, tmp_path: Path) -> None:
    code, shown, _ = infer(sample, "--check")
    assert code == ExitCode.DONE, shown
    copy = Path(shutil.copy(sample, tmp_path))
    assert infer(copy, "--write")[0] == ExitCode.DONE
    assert copy.read_bytes() == sample.read_bytes()


def test_a_sample_whose_grants_were_widened_is_written_back_as_it_was(infer: Infer, tmp_path: Path) -> None:
    original = (ROOT / "workflows" / "customer_feedback.yaml").read_text()
    wide = original.replace("columns: [comment, id, kind]", "columns: [comment, email, id, kind]").replace(
        "            columns: [feedback_id, language, run_id, translation]\n",
        "            columns: [feedback_id, language, run_id, translation]\n          - delete: payment_card\n",
    )
    file = tmp_path / "wide.yaml"
    file.write_text(wide)
    code, shown, _ = infer(file)
    assert code == ExitCode.DONE
    assert "  - not needed  select (email) on public.customer_feedback\n" in shown
    assert "  - not needed  delete on public.payment_card\n" in shown
    assert file.read_text() == wide
    assert infer(file, "--check")[0] == ExitCode.STEP_FAILED
    assert infer(file, "--write")[0] == ExitCode.DONE
    assert file.read_text() == original
    assert infer(file, "--check")[0] == ExitCode.DONE


def test_what_is_shown_can_be_pasted(infer: Infer, workflow: Callable[..., Path], tmp_path: Path) -> None:
    file = workflow("SELECT id, kind FROM customer_feedback WHERE city = 'Surin'", "role: by-hand")
    _, shown, _ = infer(file)
    assert "work  postgres.query, grant db on support: the role `by-hand` is maintained by hand\n" in shown
    lines = shown.splitlines()[1:4]
    assert lines == ["  privileges:", "    - select: public.customer_feedback", "      columns: [city, id, kind]"]
    pasted = tmp_path / "pasted.yaml"
    block = "\n".join("      " + line for line in lines)
    pasted.write_text(
        "version: 1\nname: pasted\nagent: tester\nsteps:\n  work:\n    action: postgres.query\n    grants:\n      db:\n"
        f"        kind: database\n        connection: support\n{block}\n    with: {{ sql: SELECT 1 }}\n"
    )
    assert declared(pasted) == (Privilege("select", "public", "customer_feedback", ("city", "id", "kind")),)


def test_the_shown_difference_has_both_sides(infer: Infer, workflow: Callable[..., Path]) -> None:
    file = workflow(
        "SELECT id, kind FROM customer_feedback",
        "privileges: [{ select: customer_feedback, columns: [id, phone] }, { select: employee, columns: all }]",
    )
    code, shown, _ = infer(file)
    assert code == ExitCode.DONE
    assert "  + missing     select (kind) on public.customer_feedback\n" in shown
    assert "  - not needed  select (all) on public.employee\n" in shown
    assert "  - not needed  select (phone) on public.customer_feedback\n" in shown
    assert "0 of 1 grant is as inferred; --write puts into the file what is\n" in shown
    step = steps_of(infer(file, "--json")[1])["work"]
    assert step["differs"]
    assert step["missing"] == [{"select": "public.customer_feedback", "columns": ["kind"]}]
    assert [each["select"] for each in step["not_needed"]] == ["public.customer_feedback", "public.employee"]


def test_a_step_without_a_grant_gets_one_where_the_connection_is_named(
    infer: Infer, workflow: Callable[..., Path]
) -> None:
    file = workflow(
        "DELETE FROM ticket WHERE id = %(id)s", action="postgres.execute", more="      parameters: {id: a}\n"
    )
    before = file.read_text()
    code, _, said = infer(file, "--write")
    assert code == ExitCode.INVALID
    assert "step `work` has no database grant" in said
    assert "--connection" in said
    assert file.read_text() == before
    assert infer(file, "--connection", "support", "--check")[0] == ExitCode.STEP_FAILED
    assert infer(file, "--connection", "support", "--write")[0] == ExitCode.DONE
    assert declared(file) == (
        Privilege("delete", "public", "ticket"),
        Privilege("select", "public", "ticket", ("id",)),
    )
    assert infer(file, "--check")[0] == ExitCode.DONE


def test_a_role_that_is_maintained_by_hand_is_left_unless_it_may_be_replaced(
    infer: Infer, workflow: Callable[..., Path]
) -> None:
    file = workflow("SELECT id FROM ticket", "role: by-hand, ttl: 2m")
    before = file.read_text()
    code, shown, _ = infer(file, "--write")
    assert code == ExitCode.DONE
    assert "the role `by-hand` is maintained by hand" in shown
    assert file.read_text() == before
    assert infer(file, "--write", "--replace-role")[0] == ExitCode.DONE
    assert file.read_text() == before.replace("role: by-hand", "privileges: [{ select: public.ticket, columns: [id] }]")


def test_row_limits_are_kept_and_their_columns_need_no_grant(infer: Infer, workflow: Callable[..., Path]) -> None:
    limits = 'where: { customer_id: "${{ inputs.customer }}", channel: web }'
    top = "inputs: { customer: { type: integer } }"
    file = workflow(
        "SELECT id, comment FROM customer_feedback",
        f"privileges: [{{ select: customer_feedback, columns: [id, email], {limits} }}]",
        top=top,
    )
    before = file.read_text()
    assert infer(file, "--write")[0] == ExitCode.DONE
    assert file.read_text() == before.replace("[id, email]", "[id, comment]")
    assert infer(file, "--check")[0] == ExitCode.DONE


INCOMPLETE = {
    "an expression in the SQL": (
        "SELECT id FROM ${{ inputs.table }}",
        "an expression makes the SQL, so that only the run knows it: declare what it needs",
    ),
    "DO": ("DO $$ BEGIN DELETE FROM ticket; END $$", "DO runs code that is not looked into: declare what it needs"),
    "a PL/pgSQL function": (
        "SELECT \"Odd 'Schema'\".dynamic('SELECT 1')",
        "dynamic(text) (plpgsql) runs as the step: declare what its body needs",
    ),
    "nothing that is needed": ("SELECT now()", "the SQL needs no privilege at all"),
}


@pytest.mark.parametrize("case", INCOMPLETE)
def test_what_cannot_be_known_is_said_and_never_guessed(infer: Infer, workflow: Callable[..., Path], case: str) -> None:
    text, note = INCOMPLETE[case]
    file = workflow(text, action="postgres.execute", top="inputs: { table: { default: ticket } }")
    before = file.read_text()
    code, _, said = infer(file, "--write", "--connection", "support")
    assert code == ExitCode.INVALID
    assert "not everything can be inferred, so nothing was written: step `work`: " in said
    assert note in said
    assert file.read_text() == before
    code, shown, _ = infer(file, "--connection", "support")
    assert code == ExitCode.DONE
    assert note in " ".join(shown.split())


def test_what_was_declared_by_hand_for_code_that_is_not_looked_into_passes_the_check(
    infer: Infer, workflow: Callable[..., Path]
) -> None:
    by_hand = "privileges: [{ delete: ticket }, { select: ticket, columns: [id] }]"
    file = workflow("DO $$ BEGIN DELETE FROM ticket WHERE id = ''; END $$", by_hand, action="postgres.execute")
    before = file.read_text()
    assert infer(file, "--check")[0] == ExitCode.DONE
    code, shown, _ = infer(file, "--write")
    assert (code, file.read_text()) == (ExitCode.DONE, before)
    assert "as declared, which cannot be checked whole" in shown


def test_other_steps_are_written_where_they_are_chosen(infer: Infer, workflow: Callable[..., Path]) -> None:
    other = "  other:\n    action: postgres.query\n    with: { sql: SELECT id FROM ticket }\n"
    file = workflow("DO ''", action="postgres.execute", more=other)
    before = file.read_text()
    assert infer(file, "--connection", "support", "--write")[0] == ExitCode.INVALID
    assert file.read_text() == before
    assert infer(file, "--connection", "support", "--write", "--step", "other")[0] == ExitCode.DONE
    assert declared(file, "other") == (Privilege("select", "public", "ticket", ("id",)),)


def test_hostile_names_are_found_written_and_granted(infer: Infer, workflow: Callable[..., Path], bench: Bench) -> None:
    table = sql.Identifier("Odd 'Schema'", 'a: "b" #c').as_string(None)
    file = workflow(
        f'SELECT "Odd \'Schema\'".twice("true"), "it\'s, [x]", "größe" FROM {table}', "privileges: [{ delete: ticket }]"
    )
    assert infer(file, "--write")[0] == ExitCode.DONE
    assert declared(file) == (
        Privilege("select", "Odd 'Schema'", 'a: "b" #c', ("größe", "it's, [x]", "true")),
        Privilege("execute", "Odd 'Schema'", "twice(integer)"),
    )
    assert infer(file, "--check")[0] == ExitCode.DONE
    outcome = bench.run(file.read_text())
    assert outcome.exit_code is ExitCode.DONE, outcome.reason
    with bench.provisioning(prune=True) as work:
        work.apply(work.plan())


def test_a_column_named_like_a_star_cannot_be_declared_and_is_not_written(
    infer: Infer, workflow: Callable[..., Path]
) -> None:
    table = sql.Identifier("Odd 'Schema'", 'a: "b" #c').as_string(None)
    file = workflow(f'SELECT "*", "true" FROM {table}', "privileges: [{ delete: ticket }]")
    before = file.read_text()
    code, _, said = infer(file, "--write")
    assert code == ExitCode.INVALID
    assert "nothing was written" in said
    assert file.read_text() == before


def test_a_declared_function_is_recognised_and_one_that_everybody_may_call_is_tolerated(
    infer: Infer, workflow: Callable[..., Path]
) -> None:
    by_hand = (
        'privileges: [{ execute: "\\"Odd \'Schema\'\\".twice(int)" }, { execute: "\\"Odd \'Schema\'\\".open(int4)" }]'
    )
    file = workflow("SELECT \"Odd 'Schema'\".twice(1), \"Odd 'Schema'\".open(2)", by_hand)
    code, shown, _ = infer(file, "--check")
    assert code == ExitCode.DONE, shown
    file = workflow("SELECT \"Odd 'Schema'\".twice(1)", by_hand)
    assert "- not needed  execute on \"Odd 'Schema'\".open(integer)" in infer(file)[1]


def test_percent_signs_are_placeholders_only_where_the_step_has_parameters(
    infer: Infer, workflow: Callable[..., Path]
) -> None:
    needs = "privileges: [{ select: customer_feedback, columns: [id] }]"
    assert infer(workflow("SELECT id % 7 FROM customer_feedback", needs), "--check")[0] == ExitCode.DONE
    with_them = workflow(
        "SELECT id %% 7 FROM customer_feedback WHERE id > %(least)s", needs, more="      parameters: { least: 5 }\n"
    )
    assert infer(with_them, "--check")[0] == ExitCode.DONE
    each = workflow(
        "UPDATE ticket SET subject = %(subject)s WHERE id = %(id)s",
        "privileges: [{ update: ticket, columns: [subject] }, { select: ticket, columns: [id] }]",
        action="postgres.execute",
        more="      each: [{ subject: a, id: b }]\n",
    )
    assert infer(each, "--check")[0] == ExitCode.DONE


def test_names_are_resolved_as_in_a_steps_session_not_as_in_the_logins_own(
    infer: Infer, workflow: Callable[..., Path], bench: Bench
) -> None:
    bench.sql("CREATE SCHEMA catalog_reader; GRANT USAGE ON SCHEMA catalog_reader TO PUBLIC")
    bench.sql("CREATE TABLE catalog_reader.ticket (id text, own text)")
    bench.sql("CREATE TABLE \"Odd 'Schema'\".ticket (id text)")
    file = workflow("SELECT id FROM ticket", "privileges: [{ select: public.ticket, columns: [id] }]")
    try:
        assert infer(file, "--check")[0] == ExitCode.DONE
        bench.sql("ALTER DATABASE support SET search_path = \"Odd 'Schema'\", public")
        assert "    - select: '\"Odd ''Schema''\".ticket'\n" in infer(file)[1]
    finally:
        bench.sql("ALTER DATABASE support RESET search_path; DROP TABLE \"Odd 'Schema'\".ticket")
        bench.sql("DROP SCHEMA catalog_reader CASCADE")


def test_nothing_is_ever_executed(infer: Infer, workflow: Callable[..., Path], bench: Bench) -> None:
    bench.sql("INSERT INTO ticket VALUES ('kept', 1234, '', 0) ON CONFLICT DO NOTHING")
    file = workflow("DELETE FROM ticket; TRUNCATE ticket; DROP TABLE ticket", "privileges: [{ delete: ticket }]")
    infer(file)
    assert infer("--connection", "support", "--sql", "DELETE FROM ticket; DROP TABLE ticket")[0] == ExitCode.DONE
    assert bench.sql("SELECT id FROM ticket WHERE id = 'kept'") == ["kept"]
    bench.sql("DELETE FROM ticket WHERE id = 'kept'")


def test_every_statement_that_cannot_be_resolved_is_reported_at_its_place(
    infer: Infer, workflow: Callable[..., Path]
) -> None:
    grant = "grants: { db: { kind: database, connection: support, privileges: [{ delete: ticket }] } }"
    other = (
        f"  other:\n    action: postgres.query\n    {grant}\n    with: {{ sql: \"SELECT 'x'::integer FROM ticket\" }}\n"
    )
    file = workflow("SELECT nothing FROM ticket", "privileges: [{ delete: ticket }]", more=other)
    code, shown, said = infer(file)
    assert (code, shown) == (ExitCode.INVALID, "")
    assert 'workflow.yaml:10:12: error: PostgreSQL cannot resolve the SQL: column "nothing" does not exist' in said
    assert (
        "workflow.yaml:14:18: error: PostgreSQL cannot resolve the SQL: invalid input syntax for type integer" in said
    )


def test_the_grants_of_sql_on_the_command_line(infer: Infer) -> None:
    code, shown, _ = infer("--connection", "support", "--sql", "SELECT id FROM ticket")
    assert (code, shown) == (ExitCode.DONE, "privileges:\n  - select: public.ticket\n    columns: [id]\n")
    code, shown, _ = infer(
        "--connection", "support", "--parameters", "--json", "--sql", "SELECT id FROM ticket LIMIT %(n)s"
    )
    assert json.loads(shown) == {
        "connection": "support",
        "complete": True,
        "privileges": [{"select": "public.ticket", "columns": ["id"]}],
        "notes": [],
        "remarks": [],
    }
    code, shown, _ = infer("--connection", "support", "--sql", "DO ''")
    assert (code, shown) == (ExitCode.DONE, "note: DO runs code that is not looked into: declare what it needs\n")


def test_what_was_written_is_told_as_done(infer: Infer, workflow: Callable[..., Path]) -> None:
    needs = "privileges: [{ select: ticket, columns: [id, subject] }]"
    grant = f"grants: {{ db: {{ kind: database, connection: support, {needs} }} }}"
    other = f"  other:\n    action: postgres.query\n    {grant}\n"
    file = workflow(
        "SELECT id FROM ticket",
        needs,
        more=other + "    with: { sql: 'SELECT id, subject FROM ticket' }\n",
    )
    assert infer(file)[1].endswith("1 of 2 grants are as inferred; --write puts into the file what is\n")
    code, shown, _ = infer(file, "--write")
    assert code == ExitCode.DONE
    assert "  - taken out   select (subject) on public.ticket\n" in shown
    assert "missing" not in shown
    assert shown.endswith("1 grant written; 2 of 2 grants are as inferred\n")
    assert infer(file, "--write")[1].endswith("0 grants written; 2 of 2 grants are as inferred\n")
    assert infer(file, "--check", "--step", "work")[1].endswith("1 of 1 grant is as inferred\n")


def test_steps_and_connections_are_completed(
    workflow: Callable[..., Path], catalog_login: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = workflow("SELECT id FROM ticket", "privileges: [{ select: ticket, columns: [id] }]")

    def completed(*words: str) -> list[str]:
        line = ["orchestrator", "grants", "infer", *words]
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "ORCHESTRATOR_CATALOG_DATABASES__SUPPORT": catalog_login,
            "_ORCHESTRATOR_COMPLETE": "complete_bash",
            "COMP_WORDS": " ".join(line),
            "COMP_CWORD": str(len(line) - 1),
        }
        command = [sys.executable, "-m", "orchestrator.cli"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout.split()

    assert completed(str(file), "--step", "w") == ["work"]
    assert completed(str(file), "--step", "x") == []
    assert completed("nowhere.yaml", "--step", "w") == []
    assert completed("--connection", "s") == ["support"]


def test_a_thousand_steps_are_written_at_once(infer: Infer, tmp_path: Path) -> None:
    step = (
        "  s{}:\n    action: postgres.query\n    grants:\n      db:\n        kind: database\n"
        "        connection: support\n        privileges:\n          - select: ticket\n            columns: [id]\n"
        "    with: {{ sql: 'SELECT id, subject FROM ticket' }}\n"
    )
    file = tmp_path / "large.yaml"
    text = "version: 1\nname: large\nagent: tester\nsteps:\n" + "".join(step.format(n) for n in range(1000))
    file.write_text(text)
    code, shown, said = infer(file, "--write")
    assert code == ExitCode.DONE, said[:300]
    assert shown.endswith("1,000 grants written; 1,000 of 1,000 grants are as inferred\n")
    assert file.read_text() == text.replace("columns: [id]", "columns: [id, subject]")


MISUSED = [
    [],
    ["workflow.yaml", "--sql", "SELECT 1"],
    ["--sql", "SELECT 1"],
    ["--sql", "SELECT 1", "--connection", "support", "--write"],
    ["--sql", "SELECT 1", "--connection", "support", "--step", "work"],
    ["--sql", "SELECT FROM WHERE", "--connection", "support"],
    ["--sql", "SELECT 1", "--connection", "elsewhere"],
    ["workflow.yaml", "--write", "--check"],
    ["workflow.yaml", "--replace-role"],
    ["workflow.yaml", "--parameters"],
    ["workflow.yaml", "--step", "nothing"],
    ["nowhere.yaml"],
]


@pytest.mark.parametrize("arguments", MISUSED, ids=" ".join)
def test_misuse_is_told_with_exit_code_2(
    infer: Infer,
    workflow: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
) -> None:
    workflow("SELECT id FROM ticket", "privileges: [{ select: ticket, columns: [id] }]")
    monkeypatch.chdir(tmp_path)
    code, _, said = infer(*arguments)
    assert code == ExitCode.INVALID
    assert said.startswith("error: ")


def test_the_administrators_login_never_serves_instead_and_a_wrong_one_is_unreachable(
    infer: Infer, workflow: Callable[..., Path], bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = workflow("SELECT id FROM ticket", "privileges: [{ select: ticket, columns: [id] }]")
    monkeypatch.setenv("ORCHESTRATOR_CATALOG_DATABASES__SUPPORT", "postgresql://nobody:wrong@127.0.0.1:1/support")
    monkeypatch.setenv("ORCHESTRATOR_PROVISION_DATABASES__SUPPORT", bench.info.support_dsn.reveal())
    code, _, said = infer(file)
    assert code == ExitCode.UNREACHABLE
    assert "wrong" not in said
    monkeypatch.delenv("ORCHESTRATOR_CATALOG_DATABASES__SUPPORT")
    code, _, said = infer(file, "--check")
    assert code == ExitCode.INVALID
    assert "ORCHESTRATOR_CATALOG_DATABASES__SUPPORT" in said


OPEN_SCHEMA = """
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
          - schema: '"Odd ''Schema''"'
    with: { sql: "SELECT \\"Odd 'Schema'\\".open(1) AS one" }
"""


def test_a_schema_that_everybody_may_use_may_be_declared_and_need_not(infer: Infer, tmp_path: Path) -> None:
    file = tmp_path / "workflow.yaml"
    file.write_text(OPEN_SCHEMA)
    code, shown, _ = infer(str(file), "--check", "--json")
    (step,) = json.loads(shown)["steps"]
    assert (code, step["privileges"]) == (ExitCode.DONE, [{"schema": "\"Odd 'Schema'\""}])
    assert (step["missing"], step["not_needed"]) == ([], [])


def test_a_step_that_the_server_refuses_does_not_hide_the_others(infer: Infer, tmp_path: Path) -> None:
    file = tmp_path / "workflow.yaml"
    steps = "".join(
        f"  {name}:\n    action: postgres.query\n    grants:\n      db: {{ kind: database, connection: support,"
        f" privileges: [{{ select: ticket, columns: [id] }}] }}\n    with: {{ sql: 'SELECT {column} FROM ticket' }}\n"
        for name, column in (("right", "id"), ("wrong", "nothing"), ("more", "id, subject"))
    )
    file.write_text(f"version: 1\nname: three\nagent: tester\nsteps:\n{steps}")
    before = file.read_text()
    code, shown, said = infer(str(file), "--write")
    assert code == ExitCode.INVALID
    assert "right  postgres.query, grant db on support: as inferred" in shown
    assert "more  postgres.query, grant db on support: differs" in shown
    assert 'column "nothing" does not exist' in said
    assert file.read_text() == before
