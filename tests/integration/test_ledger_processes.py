"""Several processes, and processes that die, over one SQLite file or one PostgreSQL database."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.clock import SystemClock
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.types import LeaseFilter

APPENDER = """
import asyncio, sys
from orchestrator.clock import SystemClock
from orchestrator.ledger.events import LeaseIssued, LeaseRequested, RunStarted
from orchestrator.ledger.opening import open_ledger

async def main(url, run, count):
    clock = SystemClock()
    async with open_ledger(url, clock=clock) as ledger:
        started = RunStarted(workflow="w", digest="d", agent="a", trigger="t", inputs={}, steps=("s",))
        fence = await ledger.begin_run(run, started)
        for number in range(count):
            lease = f"{run}-{number}"
            request = LeaseRequested(
                lease_id=lease, step="s", attempt=1, grant="g", grant_kind="secret", resource="r", scope={}, ttl=1
            )
            await ledger.append(run, fence, [request, LeaseIssued(lease_id=lease, ttl=1, expires_at=clock.now())])
            print(lease, flush=True)

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""

OPENER = """
import sys
import alembic.autogenerate, alembic.command, orchestrator.ledger.storage.migrate, orchestrator.ledger.writing.store
from orchestrator.clock import SystemClock
from orchestrator.ledger.opening import open_ledger
print("ready", flush=True)
sys.stdin.readline()
with open_ledger(sys.argv[1], clock=SystemClock()) as ledger:
    print(len(ledger.runs()))
"""


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a ledger that nobody has opened yet."""
    if request.param == "sqlite":
        return str(tmp_path / "new" / "ledger.db")
    return str(request.getfixturevalue("new_database"))


def test_processes_that_open_a_new_ledger_together_all_find_it_ready(url: str) -> None:
    openers = [python(OPENER, url) for _ in range(6)]
    for opener in openers:
        assert opener.stdout is not None
        assert opener.stdout.readline() == "ready\n"
    for opener in openers:
        assert opener.stdin is not None
        opener.stdin.write("\n")
        opener.stdin.flush()
    answers = [opener.communicate()[0] for opener in openers]
    assert answers == ["0\n"] * 6
    assert [opener.returncode for opener in openers] == [0] * 6


def test_two_processes_append_to_one_ledger_without_losing_anything(url: str) -> None:
    appenders = [python(APPENDER, url, run, "150") for run in ("run_1", "run_2")]
    outputs = [appender.communicate()[0] for appender in appenders]
    assert [appender.returncode for appender in appenders] == [0, 0]
    with open_ledger(url, clock=SystemClock()) as ledger:
        for run, output in zip(("run_1", "run_2"), outputs, strict=True):
            assert ledger.verify(run) is None
            acknowledged = output.split()
            assert len(acknowledged) == 150
            assert {lease.lease_id for lease in ledger.leases(LeaseFilter(run=run))} == set(acknowledged)


def test_a_killed_process_leaves_a_whole_chain_with_all_that_was_acknowledged(url: str) -> None:
    for number in range(3):
        run = f"run_{number}"
        appender = python(APPENDER, url, run, "100000")
        assert appender.stdout is not None
        acknowledged = {appender.stdout.readline().strip() for _ in range(40 + number)}
        appender.kill()
        acknowledged |= set(appender.communicate()[0].split("\n")[:-1])
        with open_ledger(url, clock=SystemClock()) as ledger:
            assert ledger.verify(run) is None
            leases = ledger.leases(LeaseFilter(run=run, limit=100000))
            assert {lease.lease_id for lease in leases} >= acknowledged
            assert {lease.state for lease in leases} == {"issued"}
            assert len(ledger.events(run)) == 1 + 2 * len(leases)


def test_the_file_and_the_folder_made_for_it_are_for_their_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "state" / "orchestrator" / "ledger.db"
    process = python(APPENDER, str(path), "run_1", "100000")
    assert process.stdout is not None
    process.stdout.readline()
    try:
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
        assert modes == {"ledger.db": 0o600, "ledger.db-wal": 0o600, "ledger.db-shm": 0o600}
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    finally:
        process.kill()
        process.communicate()


def test_a_ledger_that_is_current_is_opened_without_alembic_and_the_module_without_sqlalchemy(url: str) -> None:
    code = """
import sys
from orchestrator.ledger.opening import open_ledger
from orchestrator.clock import SystemClock
print("sqlalchemy" in sys.modules, "alembic" in sys.modules)
open_ledger(sys.argv[1], clock=SystemClock()).close()
print("alembic" in sys.modules)
"""
    assert python(code, url).communicate()[0].split() == ["False", "False", "True"]
    assert python(code, url).communicate()[0].split() == ["False", "False", "False"]
