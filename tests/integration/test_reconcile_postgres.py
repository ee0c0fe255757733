"""Real logs of a real PostgreSQL, in all its forms, held against the ledger of runs on it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from audit_logs import FORMS, logging_postgres
from bench import prepare

from orchestrator.cli.main import main
from orchestrator.clock import SystemClock
from orchestrator.devstack.stack import DevStack
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.types import LeaseFilter

WORKFLOW = """
version: 1
name: logged
agent: feedback-assistant
steps:
  read:
    action: postgres.query
    grants:
      db: { kind: database, connection: support, role: feedback-read }
    with: { sql: "SELECT 'CREATE ROLE \\"orc_quoted_aaaaaaaa\\"' AS text" }
    outputs: [rows]
"""
PASSWORD = "a-password-of-somebody"
HIDDEN = "/* */ SELECT 1; CREATE USER orc_hidden_bbbbbbbb PASSWORD 'a-password-of-somebody'"


@dataclass(frozen=True)
class World:
    """A stack whose PostgreSQL logs, with what happened on it."""

    directory: Path
    ledger: str
    ours: set[str]

    def log(self, form: str) -> Path:
        return self.directory / FORMS[form]


@pytest.fixture(scope="module", params=["ddl", "all"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    """One run of ours, and logins that somebody else made and did not drop."""
    directory = tmp_path_factory.mktemp("logged")
    with pytest.MonkeyPatch.context() as patch, logging_postgres(patch, request.param):
        servers = DevStack(directory / "stack")
        with servers as info:
            bench = prepare(info, directory)
            bench.run(WORKFLOW)
            with psycopg.connect(info.support_dsn.reveal(), autocommit=True) as somebody:
                somebody.execute(f"CREATE ROLE \"orc_behind-our-back_Ab3dEf5h\" LOGIN PASSWORD '{PASSWORD}'")
                somebody.execute(HIDDEN)
                with pytest.raises(psycopg.Error):
                    somebody.execute(f"CREATE ROLE \"orc_failed_Ab3dEf5h\" PASSWORD '{PASSWORD}' ROLE nobody_there")
                somebody.execute("CREATE ROLE somebody_else")
            bench.run(WORKFLOW)  # the log goes on after that
            with open_ledger(bench.config().ledger_url, clock=SystemClock()) as ledger:
                logins = {each.subject for each in ledger.leases(LeaseFilter()) if each.subject.startswith("orc_")}
            with psycopg.connect(info.support_dsn.reveal(), autocommit=True) as somebody:
                somebody.execute('DROP ROLE "orc_behind-our-back_Ab3dEf5h", orc_hidden_bbbbbbbb')
        shutil.copytree(servers.postgres.data_dir / "log", directory / "log")
    return World(directory / "log", bench.config().ledger_url, logins)


Reconcile = Callable[..., tuple[dict[str, Any], str]]


@pytest.fixture
def reconcile(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Reconcile:
    """The answer of `history reconcile --json`, and all that was said by it and its form for people."""

    def run(world: World, *files: Path, code: int) -> tuple[dict[str, Any], str]:
        monkeypatch.setenv("ORCHESTRATOR_LEDGER_URL", world.ledger)
        words = ["history", "reconcile", "--clock-skew", "0"]
        words += [word for file in files for word in ("--postgres-log", str(file))]
        assert main(words) == code
        said = capsys.readouterr()
        assert main([*words, "--json"]) == code
        again = capsys.readouterr()
        return json.loads(again.out or again.err), "".join((*said, *again))

    return run


BEHIND = {("login_unknown", "orc_behind-our-back_Ab3dEf5h"), ("login_unknown", "orc_hidden_bbbbbbbb")}


def findings(answer: dict[str, Any]) -> set[tuple[str, str]]:
    return {(each["kind"], each["what"]) for each in answer["postgres"]["findings"]}


@pytest.mark.parametrize("form", FORMS)
def test_logins_made_behind_our_back_are_found_in_every_form(world: World, reconcile: Reconcile, form: str) -> None:
    answer, said = reconcile(world, world.log(form), code=4)
    assert findings(answer) == BEHIND
    postgres = answer["postgres"]
    assert postgres["matched"] == postgres["recorded"] == len(world.ours) == 4
    assert postgres["logged"] == 6
    assert postgres["coverage"]["broken"] == 0
    assert postgres["coverage"]["entries"] > 50
    assert PASSWORD in world.log(form).read_text()
    assert PASSWORD not in said
    assert "SCRAM" not in said
    assert "CREATE" not in said


def test_what_the_log_shows_of_drops_decides_what_can_be_said_of_them(
    world: World, reconcile: Reconcile, tmp_path: Path
) -> None:
    lines = world.log("json").read_text().splitlines(keepends=True)
    without = [line for line in lines if not ("DROP ROLE" in line and "orc_behind" in line)]
    assert len(without) == len(lines) - 1
    log = tmp_path / "no-drop.json"
    log.write_text("".join(without))
    answer, _ = reconcile(world, log, code=4)
    shows_all = any("orchestrator.revoke('" in line for line in lines)
    if shows_all:
        assert findings(answer) == BEHIND | {("login_not_dropped", name) for _, name in BEHIND}
        kept = min(world.ours)
        log.write_text("".join(line for line in without if f"orchestrator.revoke('{kept}')" not in line))
        assert ("login_not_dropped", kept) in findings(reconcile(world, log, code=4)[0])
    else:
        assert findings(answer) == BEHIND
        assert any("shows no call" in note for note in answer["postgres"]["notes"])


def test_a_login_that_the_log_never_saw_made_is_found(world: World, reconcile: Reconcile, tmp_path: Path) -> None:
    gone = max(world.ours)
    log = tmp_path / "gone.csv"
    lines = world.log("csv").read_text().splitlines(keepends=True)
    log.write_text("".join(line for line in lines if f'CREATE ROLE ""{gone}""' not in line))
    answer, _ = reconcile(world, log, code=4)
    assert findings(answer) >= BEHIND | {("login_not_created", gone)}


def test_rotated_files_of_several_forms_and_broken_lines(world: World, reconcile: Reconcile, tmp_path: Path) -> None:
    parts = {form: world.log(form).read_text().splitlines(keepends=True) for form in ("json", "text")}
    first, second = tmp_path / "first.json", tmp_path / "second.log"
    first.write_text("{broken\n" + "".join(parts["json"]) + parts["json"][-1][:40])
    second.write_bytes("".join(parts["text"]).encode() + b"\xff\n")
    answer, said = reconcile(world, first, second, code=4)
    assert findings(answer) == BEHIND
    assert answer["postgres"]["coverage"]["broken"] == 3
    assert PASSWORD not in said


def test_what_is_no_log_is_refused(world: World, reconcile: Reconcile, tmp_path: Path) -> None:
    nothing = tmp_path / "nothing.log"
    nothing.write_text("hello\n")
    assert "no line of" in reconcile(world, nothing, code=2)[0]["error"]["message"]


def test_a_log_and_a_ledger_that_agree(world: World, reconcile: Reconcile, tmp_path: Path) -> None:
    log = tmp_path / "ours.json"
    lines = world.log("json").read_text().splitlines(keepends=True)
    log.write_text("".join(line for line in lines if "orc_behind" not in line and "orc_hidden" not in line))
    answer, _ = reconcile(world, log, code=0)
    assert answer["agree"] is True
    assert answer["postgres"]["matched"] == 4
