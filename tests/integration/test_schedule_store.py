"""What the scheduler remembers, in both kinds of ledger: several processes that write agree."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from orchestrator.clock import SystemClock
from orchestrator.errors import LedgerError, UsageError
from orchestrator.ledger.coordination.schedules import ScheduleState, ScheduleStore, open_schedules
from orchestrator.ledger.opening import open_ledger
from orchestrator.scheduling.state import change_state, pause, remember_from, resume, trigger

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.db"
    return str(request.getfixturevalue("new_ledger"))


@pytest.fixture
def store(url: str) -> Iterator[ScheduleStore]:
    with open_schedules(url) as opened:
        yield opened


def test_what_was_put_is_there_after_a_restart(url: str) -> None:
    state = ScheduleState(workflow="w", handled=NOON, paused=True, requested=NOON + timedelta(microseconds=5))
    with open_schedules(url) as store:
        assert store.get("w") is None
        assert store.put(state) == replace(state, version=1)
    with open_schedules(url) as store:
        assert store.get("w") == replace(state, version=1)


def test_of_two_who_read_the_same_only_the_first_may_write(store: ScheduleStore) -> None:
    read = store.put(ScheduleState(workflow="w", handled=NOON))
    assert read is not None
    assert store.put(ScheduleState(workflow="w", handled=NOON)) is None
    assert store.put(replace(read, paused=True)) is not None
    assert store.put(replace(read, handled=NOON + timedelta(hours=1))) is None
    kept = store.get("w")
    assert kept is not None
    assert (kept.paused, kept.handled) == (True, NOON)


def test_changes_of_several_writers_are_all_kept(url: str) -> None:
    def later(state: ScheduleState) -> ScheduleState:
        return replace(state, handled=state.handled + timedelta(seconds=1))

    def write() -> None:
        with open_schedules(url) as store:
            for _ in range(10):
                change_state(store, "w", later, known_since=NOON)

    with open_schedules(url) as store:
        remember_from(store, "w", NOON)
        writers = [threading.Thread(target=write) for _ in range(4)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        state = store.get("w")
    assert state is not None
    assert state.handled == NOON + timedelta(seconds=40)


def test_only_what_needs_attention_is_given_to_who_asks_for_it(store: ScheduleStore) -> None:
    for name in ("plain", "paused", "wanted"):
        remember_from(store, name, NOON)
    pause(store, "paused", NOON)
    trigger(store, "wanted", NOON)
    assert sorted(state.workflow for state in store.attention()) == ["paused", "wanted"]
    assert [state.workflow for state in store.all()] == ["paused", "plain", "wanted"]


def test_what_passed_during_a_pause_was_not_missed(store: ScheduleStore) -> None:
    remember_from(store, "w", NOON)
    pause(store, "w", NOON + timedelta(hours=1))
    assert resume(store, "w", NOON + timedelta(hours=5)).handled == NOON + timedelta(hours=5)
    assert resume(store, "w", NOON + timedelta(hours=9)).handled == NOON + timedelta(hours=5)


def test_asking_again_before_the_run_began_is_the_same_request(store: ScheduleStore) -> None:
    remember_from(store, "w", NOON)
    assert trigger(store, "w", NOON).requested == NOON
    assert trigger(store, "w", NOON + timedelta(seconds=1)).requested == NOON


def test_a_workflow_that_no_scheduler_knows_cannot_be_paused(store: ScheduleStore) -> None:
    with pytest.raises(UsageError, match="no scheduler"):
        pause(store, "unknown", NOON)


def test_a_probe_changes_nothing_and_finds_a_ledger_that_cannot_be_written(url: str, tmp_path: Path) -> None:
    with open_schedules(url) as store:
        store.probe()
        assert store.all() == []
        if url.startswith("sqlite"):
            os.rename(tmp_path / "ledger.db", tmp_path / "moved.db")
            (tmp_path / "ledger.db").mkdir()
            for name in ("ledger.db-wal", "ledger.db-shm"):
                (tmp_path / name).unlink(missing_ok=True)
            store.close()
        else:
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("DROP TABLE schedule")
        with pytest.raises(LedgerError):
            store.probe()


def test_opening_a_ledger_again_keeps_the_locks_of_who_has_it_open(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    with open_schedules(url) as store:
        remember_from(store, "w", NOON)
        before = _locks(tmp_path / "ledger.db")
        with open_ledger(url, clock=SystemClock()):
            assert before
            assert _locks(tmp_path / "ledger.db") >= before
    assert stat.S_IMODE((tmp_path / "ledger.db").stat().st_mode) == 0o600


def _locks(path: Path) -> int:
    """How many locks the system knows on a file (proc(5), /proc/locks)."""
    inode = f":{path.stat().st_ino} "
    return sum(inode in line for line in Path("/proc/locks").read_text().splitlines())
