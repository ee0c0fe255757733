"""What a command tells of settings that nobody reads, logins that may too much, and ledgers that it can only read."""

from __future__ import annotations

import io
import json
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import psycopg
import pytest
from bench import ROOT, Bench

from orchestrator.actions.catalog import catalog
from orchestrator.cli.main import main
from orchestrator.clock import SystemClock
from orchestrator.devstack.session import admin_environment
from orchestrator.ledger.opening import open_ledger
from orchestrator.workflow.loader import load_text

ECHO = """version: 1
name: says
agent: tester
steps: { say: { action: exec, with: { command: [/bin/true] } } }
"""
PASSWORD = "canary-7c1e-secret"
NO_LOGIN: dict[str, str | None] = {
    "ORCHESTRATOR_AUTH_METHOD": None,
    "ORCHESTRATOR_AUTH_ROLE_ID": None,
    "ORCHESTRATOR_AUTH_SECRET_ID": None,
}


def orchestrator(bench: Bench, *arguments: str, **changes: str | None) -> tuple[int, str, str]:
    """The command in this process, with these variables besides the runtime's; None takes one away."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as changed, redirect_stdout(out), redirect_stderr(err):
        for name in os.environ:
            if name.startswith(("ORCHESTRATOR_", "VAULT_")):
                changed.delenv(name)
        given = {**bench.environment(), "ORCHESTRATOR_POLICY": "allow-all", "HOME": str(bench.directory), **changes}
        for name, value in given.items():
            changed.delenv(name, raising=False) if value is None else changed.setenv(name, value)
        changed.chdir(bench.directory)
        code = main(list(arguments))
    return code, out.getvalue(), err.getvalue()


def reads(bench: Bench) -> str:
    """A workflow that gets a login, so that Vault is asked."""
    file = bench.directory / "reads.yaml"
    file.write_text(
        "version: 1\nname: reads\nagent: tester\nsteps:\n  read:\n    action: postgres.query\n"
        "    grants: { db: { kind: database, connection: support, role: feedback-read } }\n"
        "    with: { sql: SELECT 1 AS one }\n"
    )
    bench.install(load_text(file.read_text(), filename=str(file), actions=catalog).workflow)
    return str(file)


class TestVariables:
    @pytest.mark.parametrize("command", [("runs", "list"), ("schema",), ("validate", str(ROOT / "workflows"))])
    def test_one_that_nobody_reads_is_told_by_every_command(self, command: tuple[str, ...], bench: Bench) -> None:
        code, _, err = orchestrator(bench, *command, ORCHESTRATOR_PLICY_PATH="/x", ORCHESTRATOR_TEST_SEED="1")
        assert code == 0, err
        said = [line for line in err.splitlines() if "is no setting" in line]
        assert said == [
            "hint: ORCHESTRATOR_PLICY_PATH is no setting of the orchestrator: nothing reads it; "
            "did you mean ORCHESTRATOR_POLICY_PATH?"
        ]

    def test_what_to_do_is_told_of_one_that_was_removed(self, bench: Bench) -> None:
        code, _, err = orchestrator(bench, "runs", "list", ORCHESTRATOR_ENGINE="dbos")
        assert code == 0, err
        assert [line for line in err.splitlines() if "is no setting" in line] == [
            "hint: ORCHESTRATOR_ENGINE is no setting of the orchestrator: nothing reads it; "
            "unset it: every process walks its own runs, and a queue spreads runs over workers"
        ]

    def test_none_is_told_where_all_are_known(self, bench: Bench) -> None:
        assert "is no setting" not in orchestrator(bench, "runs", "list")[2]

    def test_a_connection_with_a_hyphen_gets_a_hint_that_a_shell_can_follow(self, bench: Bench) -> None:
        (bench.directory / "d").mkdir()
        shutil.copytree(bench.declarations, bench.directory / "d", dirs_exist_ok=True)
        file = bench.directory / "d" / "declarations.yaml"
        file.write_text(file.read_text().replace("\nconnections:\n", "\nconnections:\n  legacy-db: { login: v }\n"))
        admin = {**NO_LOGIN, **admin_environment(bench.provisioned)}
        where = ("--workflows", str(ROOT / "workflows"), "--declarations", str(bench.directory / "d"))
        code, _, err = orchestrator(bench, "provision", "plan", *where, **admin)
        assert code == 2, err
        assert "set `legacy-db` under [endpoints] in the file that ORCHESTRATOR_CONFIG names" in err
        assert "LEGACY-DB" not in err

    def test_so_it_can_be_set(self, bench: Bench) -> None:
        (bench.directory / "settings.toml").write_text(
            f'[endpoints]\nlegacy-db = "{bench.info.endpoints["support"]}"\n'
        )
        code, out, _ = orchestrator(
            bench, "doctor", "--json", ORCHESTRATOR_CONFIG=str(bench.directory / "settings.toml")
        )
        found = [each["found"] for each in json.loads(out)["findings"] if each["area"] == "endpoints"]
        assert any(each.startswith("legacy-db at ") for each in found)
        assert code == 0


class TestLogins:
    def test_a_run_as_root_is_warned_of(self, bench: Bench) -> None:
        code, _, err = orchestrator(
            bench, "run", "-q", reads(bench), VAULT_TOKEN=bench.info.root_token.reveal(), **NO_LOGIN
        )
        assert code == 0, err
        assert err.count("logged in to Vault as root") == 1
        assert "ORCHESTRATOR_AUTH_ROLE_ID" in err
        assert bench.info.root_token.reveal() not in err

    def test_the_runtime_is_not(self, bench: Bench) -> None:
        code, _, err = orchestrator(bench, "run", "-q", reads(bench))
        assert (code, err) == (0, "")

    def test_the_token_of_a_person_does_not_run_anything_unless_it_is_said(self, bench: Bench) -> None:
        (bench.directory / ".vault-token").write_text(bench.info.root_token.reveal())
        code, _, err = orchestrator(bench, "run", "-q", reads(bench), **NO_LOGIN)
        assert code == 2
        assert ".vault-token is not used, unless ORCHESTRATOR_AUTH_METHOD=token-file says so" in err
        assert json.loads(orchestrator(bench, "runs", "list", "--json")[1]) == []
        code, _, err = orchestrator(
            bench, "run", "-q", reads(bench), **{**NO_LOGIN, "ORCHESTRATOR_AUTH_METHOD": "token-file"}
        )
        assert code == 0, err
        assert "logged in to Vault as root" in err
        (bench.directory / ".vault-token").unlink()

    def test_a_person_who_has_logged_in_provisions(self, bench: Bench) -> None:
        (bench.directory / ".vault-token").write_text(bench.info.root_token.reveal())
        admin = {**admin_environment(bench.provisioned), **NO_LOGIN, "VAULT_TOKEN": None}
        where = ("--workflows", str(ROOT / "workflows"), "--declarations", str(bench.declarations))
        code, out, err = orchestrator(bench, "provision", "plan", *where, **admin)
        assert code == 0, err
        assert "nothing to change" in out
        (bench.directory / ".vault-token").unlink()


class TestWhatCannotBeAsked:
    def test_a_sweep_that_could_not_look_never_says_that_nothing_is_left(self, bench: Bench) -> None:
        away = {"ORCHESTRATOR_ENDPOINTS__SUPPORT": "postgresql://127.0.0.1:9/support"}
        code, out, _ = orchestrator(bench, "leases", "sweep", **away)
        assert (code, out.splitlines()) == (
            6,
            [
                "no lease is left on record, but:",
                "support: the orchestrator's own sweep in `support` failed: Connection refused",
            ],
        )
        assert orchestrator(bench, "leases", "sweep")[:2] == (0, "nothing is left over\n")

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"VAULT_NAMESPACE": "nowhere"}, "hint: Vault has no such namespace: is VAULT_NAMESPACE right?"),
            ({"ORCHESTRATOR_AUTH_SECRET_ID": PASSWORD}, "hint: Vault did not let the orchestrator log in"),
        ],
        ids=["namespace", "secret id"],
    )
    def test_a_login_that_fails_is_told_as_one_and_not_as_a_refusal_of_the_first_grant(
        self, bench: Bench, changes: dict[str, str], said: str
    ) -> None:
        code, out, err = orchestrator(bench, "run", "--quiet", reads(bench), **changes)
        assert code == 3
        assert "was not asked for, since the orchestrator could not log in: Vault answered 40" in err
        assert "asked for: auth/approle/login" in err
        assert said in err
        assert "nothing is mounted" not in err
        assert PASSWORD not in out + err
        assert bench.logins() == []

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"VAULT_TOKEN": PASSWORD}, "is the administrator's token (VAULT_TOKEN, or ~/.vault-token) valid"),
            ({"VAULT_NAMESPACE": "nowhere"}, "Vault has no such namespace: is VAULT_NAMESPACE right?"),
        ],
        ids=["token", "namespace"],
    )
    def test_provisioning_with_another_token_or_namespace_is_no_hint_to_provision(
        self, bench: Bench, changes: dict[str, str], said: str
    ) -> None:
        admin = {**admin_environment(bench.provisioned), **NO_LOGIN, **changes}
        where = ("--workflows", str(ROOT / "workflows"), "--declarations", str(bench.declarations))
        code, out, err = orchestrator(bench, "provision", "plan", *where, **admin)
        assert (code, out) == (3, "")
        assert said in err
        assert "provision plan" not in err
        assert PASSWORD not in err


class TestLedgersThatCanOnlyBeRead:
    """An auditor's copy, on a disk that takes nothing."""

    @pytest.fixture
    def copied(self, bench: Bench) -> tuple[Path, str]:
        """A ledger with one run, and the run's id."""
        outcome = bench.run(ECHO)
        return bench.directory / "ledger.db", outcome.run_id

    def test_it_is_listed_shown_and_verified(self, copied: tuple[Path, str], bench: Bench) -> None:
        file, run = copied
        with read_only(bench.directory / "disk", file) as disk:
            url = f"sqlite:///{disk}/ledger.db"
            listed = orchestrator(bench, "runs", "list", "--json", ORCHESTRATOR_LEDGER_URL=url)
            assert [each["run_id"] for each in json.loads(listed[1])] == [run], listed[2]
            for command in (("runs", "show", run), ("runs", "verify", run), ("leases", "list")):
                code, _, err = orchestrator(bench, *command, ORCHESTRATOR_LEDGER_URL=url)
                assert (code, err) == (0, "")
            assert sorted(each.name for each in disk.iterdir()) == ["ledger.db"]

    def test_nothing_runs_on_it(self, copied: tuple[Path, str], bench: Bench) -> None:
        with read_only(bench.directory / "disk", copied[0]) as disk:
            url = f"sqlite:///{disk}/ledger.db"
            code, _, err = orchestrator(bench, "run", reads(bench), ORCHESTRATOR_LEDGER_URL=url)
        assert code == 5
        assert "cannot be opened" in err

    def test_one_without_the_index_of_its_newest_events_is_refused(
        self, copied: tuple[Path, str], bench: Bench
    ) -> None:
        """They would be missing without a word."""
        file, _ = copied
        held = sqlite3.connect(file)  # as long as somebody has it open, what is written stays in the log
        held.execute("SELECT count(*) FROM event").fetchone()
        bench.run(ECHO)
        log = file.with_name("ledger.db-wal")
        assert log.stat().st_size > 0
        with read_only(bench.directory / "disk", file, log) as disk:
            url = f"sqlite:///{disk}/ledger.db"
            code, _, err = orchestrator(bench, "runs", "list", ORCHESTRATOR_LEDGER_URL=url)
        held.close()
        assert code == 5
        assert "its newest events are in ledger.db-wal, without ledger.db-shm" in err
        assert "Copy all three files" in err

    def test_with_all_three_files_it_is_read_whole(self, copied: tuple[Path, str], bench: Bench) -> None:
        file, run = copied
        held = sqlite3.connect(file)
        held.execute("SELECT count(*) FROM event").fetchone()
        newer = bench.run(ECHO).run_id
        files = [file.with_name(f"ledger.db{suffix}") for suffix in ("", "-wal", "-shm")]
        with read_only(bench.directory / "disk", *files) as disk:
            url = f"sqlite:///{disk}/ledger.db"
            code, out, err = orchestrator(bench, "runs", "list", "--json", ORCHESTRATOR_LEDGER_URL=url)
        held.close()
        assert code == 0, err
        assert {each["run_id"] for each in json.loads(out)} == {run, newer}

    def test_one_of_another_version_is_not_read(self, copied: tuple[Path, str], bench: Bench) -> None:
        file, _ = copied
        with sqlite3.connect(file) as open_:
            open_.execute("UPDATE alembic_version SET version_num = 'r0001'")
        open_.close()
        with read_only(bench.directory / "disk", file) as disk:
            url = f"sqlite:///{disk}/ledger.db"
            code, _, err = orchestrator(bench, "runs", "list", ORCHESTRATOR_LEDGER_URL=url)
        assert code == 5
        assert "has the schema r0001, and this version needs" in err

    def test_in_postgresql_a_login_that_may_only_read_is_enough(self, bench: Bench) -> None:
        bench.sql("CREATE DATABASE audited")
        server = bench.info.support_dsn.reveal().replace("/support", "/audited", 1)
        try:
            open_ledger(server, clock=SystemClock()).close()
            with psycopg.connect(server, autocommit=True) as session:
                session.execute("CREATE ROLE auditor LOGIN PASSWORD 'only-reads'")
                session.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO auditor")
            parts = psycopg.conninfo.conninfo_to_dict(server)
            url = f"postgresql://auditor:only-reads@{parts['host']}:{parts['port']}/audited"
            code, out, err = orchestrator(bench, "runs", "list", "--json", ORCHESTRATOR_LEDGER_URL=url)
            assert (code, out.strip()) == (0, "[]"), err
            told = json.loads(orchestrator(bench, "doctor", "--json", ORCHESTRATOR_LEDGER_URL=url)[1])["findings"]
            (found,) = [each for each in told if each["area"] == "ledger"]
            assert found["mark"] == "fault"
            assert "permission denied" in found["found"]
        finally:
            bench.sql("DROP DATABASE audited WITH (FORCE)")
            bench.sql("DROP ROLE IF EXISTS auditor")


@contextmanager
def read_only(folder: Path, *files: Path) -> Iterator[Path]:
    """A disk with copies of these files that takes nothing more. For root only a mounted one is that."""
    folder.mkdir()
    root = os.geteuid() == 0
    if root:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)], check=True)
    try:
        for file in files:
            shutil.copy(file, folder)
        if root:
            subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        else:
            folder.chmod(0o555)
        yield folder
    finally:
        if root:
            subprocess.run(["umount", str(folder)], check=True)
        else:
            folder.chmod(0o755)
