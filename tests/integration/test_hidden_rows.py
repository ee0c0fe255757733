"""Row security of the application that leaves a step no row: plan, check and prove tell it, and it is no failure."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from database_kinds import KINDS, TABLES
from sites import Site, opened

from orchestrator.cli.commands.prove import show
from orchestrator.cli.display.terminal import console
from orchestrator.cli.main import main
from orchestrator.devstack.openbao import OpenBao
from orchestrator.devstack.postgres import Postgres
from orchestrator.errors import ExitCode
from orchestrator.proof.page import page

TEXT = """
version: 1
name: matrix
agent: tester
steps:
  read:
    action: postgres.query
    grants: { db: { kind: database, connection: matrix, privileges: [ { select: note, columns: [id, owner] } ] } }
    with: { sql: "SELECT id FROM note ORDER BY id" }
    outputs: [row_count]
"""
LIMITED = TEXT.replace("columns: [id, owner]", "columns: [id, owner], where: { owner: ann }")
ADDS = (
    TEXT.replace("select: note, columns: [id, owner]", "insert: note, columns: [id]")
    .replace("postgres.query", "postgres.execute")
    .replace("SELECT id FROM note ORDER BY id", "INSERT INTO note (id) VALUES (9)")
)
ON = "ALTER TABLE note ENABLE ROW LEVEL SECURITY"
FOR_APP = "CREATE POLICY app ON note TO app_user USING (true) WITH CHECK (true)"
SELECT, INSERT = "is for select by", "is for insert by"


@pytest.fixture(params=["ordinary", "an administrator without superuser"])
def site(request: pytest.FixtureRequest, bare_servers: tuple[Postgres, OpenBao], tmp_path: Path) -> Iterator[Site]:
    kind = replace(KINDS[request.param], prepare="CREATE ROLE app_user", tables=TABLES)
    with opened(kind, bare_servers, tmp_path) as site:
        yield site
        site.assert_nothing_left()


CASES: dict[str, tuple[str, tuple[str, ...], str | None, int]] = {
    "no policy at all": (TEXT, (ON,), SELECT, 0),
    "a policy for another role": (TEXT, (ON, FOR_APP), SELECT, 0),
    "a policy for another command": (TEXT, (ON, "CREATE POLICY a ON note FOR DELETE USING (true)"), SELECT, 0),
    "a restrictive policy alone": (TEXT, (ON, "CREATE POLICY a ON note AS RESTRICTIVE USING (true)"), SELECT, 0),
    "a policy for everybody": (TEXT, (ON, FOR_APP, "CREATE POLICY a ON note USING (id < 3)"), None, 2),
    "policies while row security is off": (TEXT, (FOR_APP,), None, 3),
    "rows of ours are limited, of others not": (LIMITED, (), None, 2),
    "limits on top of a policy for another role": (LIMITED, (ON, FOR_APP), SELECT, 0),
    "limits that switch a policy for another role on": (LIMITED, (FOR_APP,), SELECT, 0),
    "limits on top of a policy for everybody": (LIMITED, (ON, "CREATE POLICY a ON note USING (id < 3)"), None, 1),
    "adding where only reading is for everybody": (
        ADDS,
        (ON, "CREATE POLICY a ON note FOR SELECT USING (true)"),
        INSERT,
        0,
    ),
    "adding where that is open": (ADDS, (ON, "CREATE POLICY a ON note FOR INSERT WITH CHECK (true)"), None, 1),
}


@pytest.mark.parametrize(("text", "statements", "told", "rows"), CASES.values(), ids=CASES)
def test_it_is_told_exactly_where_a_run_has_no_rows(
    site: Site, text: str, statements: tuple[str, ...], told: str | None, rows: int
) -> None:
    for statement in statements:
        site.sql(statement)
    before = site.notes(text)
    site.apply(text)
    after = site.notes(text)
    with site.provisioning(text) as work:
        checked = work.check()
    assert list(checked.changes) == []
    proof = site.prove(text)
    assert proof.holds, "the credential may do what is declared"
    proven = [note for each in proof.grants for note in each.notes]
    assert len(proven) == len(before) == len(after) == (0 if told is None else 1)
    for notes in (before, after, checked.notes, proven):
        assert any(told is not None and told in note and "public.note" in note for note in notes) is (told is not None)

    outcome = site.run(text)
    if told == INSERT:
        assert outcome.exit_code is ExitCode.STEP_FAILED
        assert "SQLSTATE 42501" in outcome.errors["read"].message
    else:
        assert outcome.exit_code is ExitCode.DONE
        assert site.output("read") == {"row_count": rows}


def test_what_the_note_says_helps(site: Site) -> None:
    site.sql(ON)
    site.apply(TEXT)
    (note,) = site.notes(TEXT)
    remedy = note.partition(": CREATE POLICY ... ")[2]
    assert remedy.startswith("ON public.note FOR SELECT TO PUBLIC or TO orchestrator_scope_")
    role = remedy.partition("or TO ")[2].partition(",")[0]
    site.sql(f"CREATE POLICY steps ON note FOR SELECT TO {role} USING (true)")
    assert site.notes(TEXT) == []
    assert site.run(TEXT).exit_code is ExitCode.DONE
    assert site.output("read") == {"row_count": 3}
    assert site.plan(TEXT) == [], "a policy of somebody else's is no drift"


def test_commands_and_reports_show_it(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    site.sql(ON)
    site.apply(TEXT)
    command = site.command(monkeypatch, TEXT)
    words = "row level security is on for public.note"
    for name in ("plan", "check", "apply"):
        assert main(["provision", name, *command]) == ExitCode.DONE
        assert words in capsys.readouterr().out.replace("\n", " ")
        assert main(["provision", name, "--json", *command]) == ExitCode.DONE
        assert any(words in note for note in json.loads(capsys.readouterr().out)["notes"])
    proof = site.prove(TEXT)
    assert words in page(proof)
    assert words in json.dumps(proof.as_json())
    show(proof, console(sys.stdout))
    assert words in capsys.readouterr().out
