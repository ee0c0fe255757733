"""Where an export goes may be full, closed, or lost: then it has no end, and what was at its place stays."""

from __future__ import annotations

import errno
import json
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from exported import BEGUN, LIFE, Export, exporter, ledger_of, lines

from orchestrator.cli.main import main
from orchestrator.ledger.reading import history

FORMS = ("jsonl", "csv", "ocsf")


@pytest.fixture
def export(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Export:
    return exporter(monkeypatch, capsys)


@pytest.fixture
async def url(tmp_path: Path) -> str:
    return await ledger_of(f"sqlite:///{tmp_path / 'ledger.db'}", 20, 250)


def started(url: str, *words: str, stdout: Any = subprocess.PIPE) -> subprocess.Popen[str]:
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "ORCHESTRATOR_LEDGER_URL": url}
    command = [sys.executable, "-m", "orchestrator.cli", "history", "export", *words]
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    return subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_export_that_was_ended_has_no_end(url: str, number: signal.Signals) -> None:
    with started(url) as process:
        assert process.stdout is not None
        begun = process.stdout.readline()  # the rest does not fit into the pipe
        process.send_signal(number)
        rest = process.stdout.read()
        _, said = process.communicate(timeout=60)
    assert process.returncode == (143 if number is signal.SIGTERM else -9)
    assert begun.startswith("{")
    assert '"end": true' not in rest
    assert "exported" not in said


def test_a_file_is_whole_or_not_there(url: str, tmp_path: Path, export: Export) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    file = folder / "history.jsonl"
    assert export(url, "--output", str(file)) == ""
    found, mark = lines(file.read_text())
    assert mark["events"] == len(found) == 20 * (250 * LIFE + 2)
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_text("what was there before")
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as ledger:
        ledger.execute("DROP TRIGGER event_refuses_update")
        ledger.execute("UPDATE event SET data = 'no JSON' WHERE run_id = 'run_000015' AND seq = 7")
        ledger.commit()
    assert export(url, "--output", str(file), code=5) == ""
    assert file.read_text() == "what was there before"
    assert os.listdir(folder) == ["history.jsonl"]
    text = export(url, code=5)
    assert '"end": true' not in text
    assert json.loads(text.splitlines()[-1])["run_id"] == "run_000014"


def test_nothing_is_written_where_no_file_can_be(url: str, tmp_path: Path, export: Export) -> None:
    export(url, "--output", str(tmp_path), code=2)
    export(url, "--output", str(tmp_path / "no" / "such"), code=2)
    export(url, "--format", "csv", "--with-values", code=2)


async def test_a_ledger_that_is_lost_on_the_way_is_no_end(
    new_ledger: str, stack: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    await ledger_of(new_ledger, 3, 4)
    monkeypatch.setattr(history, "EVENTS_AT_ONCE", 5)
    name = new_ledger.rpartition("/")[2]
    genuine = history._pages

    def pages(snapshot: Any, head: Any) -> Any:
        if head.run_id == "run_000001":
            with psycopg.connect(stack.admin_dsn.reveal(), autocommit=True) as admin:
                admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
                admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        return genuine(snapshot, head)

    monkeypatch.setattr(history, "_pages", pages)
    monkeypatch.setenv("ORCHESTRATOR_LEDGER_URL", new_ledger)
    assert main(["history", "export"]) == 5
    out = capsys.readouterr().out
    assert {json.loads(line)["run_id"] for line in out.splitlines()} == {"run_000000"}


def test_events_that_are_missing_are_counted_at_the_end(url: str, tmp_path: Path, export: Export) -> None:
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as ledger:
        for (name,) in ledger.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            ledger.execute(f"DROP TRIGGER {name}")
        ledger.execute("DELETE FROM event WHERE run_id = 'run_000003' AND seq IN (5, 6)")
        ledger.execute("DELETE FROM event WHERE run_id = 'run_000004'")
        ledger.commit()
    found, mark = lines(export(url, code=4))
    assert mark["missing_events"] == 2 + 250 * LIFE + 2
    assert mark["events"] == len(found) == 20 * (250 * LIFE + 2) - mark["missing_events"]
    assert mark["first_time"] > BEGUN.isoformat()


@pytest.mark.parametrize("form", FORMS)
def test_a_reader_who_goes_away_ends_it_without_a_word(url: str, form: str) -> None:
    with started(url, "--format", form) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        said = process.stderr.read()
    assert said == ""
    assert process.returncode == 141


@pytest.mark.parametrize("form", FORMS)
def test_a_full_disk_is_said_and_is_no_end(url: str, form: str) -> None:
    with open("/dev/full", "w") as full, started(url, "--format", form, stdout=full) as process:
        _, said = process.communicate(timeout=60)
    assert process.returncode == 5
    assert said.splitlines() == [
        "error: what was to be said cannot be written: No space left on device",
        "hint: is the disk full?",
    ]


def test_a_disk_that_is_full_at_the_end_leaves_what_was_there(
    url: str, tmp_path: Path, export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "out").mkdir()
    file = tmp_path / "out" / "leases.csv"
    file.write_text("what was there before")
    monkeypatch.setattr(os, "fsync", full)
    export(url, "--format", "csv", "--output", str(file), code=5)
    assert file.read_text() == "what was there before"
    assert os.listdir(file.parent) == ["leases.csv"]


def test_a_link_stays_one_and_what_it_names_is_written(url: str, tmp_path: Path, export: Export) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    link, file = tmp_path / "here" / "latest", tmp_path / "there" / "history.jsonl"
    link.symlink_to(file)
    for _ in range(2):
        export(url, "--run", "run_000003", "--output", str(link))
        assert lines(file.read_text())[1]["runs"] == 1
        assert link.is_symlink()
        assert (os.listdir(link.parent), os.listdir(file.parent)) == (["latest"], ["history.jsonl"])
