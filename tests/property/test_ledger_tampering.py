"""Whoever edits the events with raw SQL, past the triggers, is found at the first event that was touched."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.clock import SystemClock
from orchestrator.ledger.events import LeaseIssued, LeaseRequested, LeaseRevoked, LeaseRevoking, RunStarted
from orchestrator.ledger.opening import open_ledger

RUN = "run_1"
EVENTS = 9
Tamper = Callable[[sqlite3.Connection], int]
"""Changes the history and says at which event it must be found broken."""

one_event = st.integers(min_value=1, max_value=EVENTS)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger with two runs of nine events each, without triggers and foreign keys."""
    path = tmp_path_factory.mktemp("whole") / "ledger.db"

    async def write() -> None:
        async with open_ledger(str(path), clock=SystemClock()) as ledger:
            for run in (RUN, "run_2"):
                started = RunStarted(workflow="w", digest="d", agent="a", trigger="manual", inputs={}, steps=("s",))
                fence = await ledger.begin_run(run, started)
                for number in range(2):
                    lease = f"lease_{run}_{number}"
                    request = LeaseRequested(
                        lease_id=lease,
                        step="s",
                        attempt=1,
                        grant="g",
                        grant_kind="secret",
                        resource="r",
                        scope={},
                        ttl=9,
                    )
                    issued = LeaseIssued(lease_id=lease, ttl=9, expires_at=datetime(2030, 1, 1, tzinfo=UTC))
                    await ledger.append(run, fence, [request, issued])
                    revoking = LeaseRevoking(lease_id=lease, reason="step ended")
                    await ledger.append(run, fence, [revoking, LeaseRevoked(lease_id=lease, confirmed_by="vault")])

    asyncio.run(write())
    with closing(sqlite3.connect(path)) as connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
    return path


@contextmanager
def copied(whole: Path) -> Iterator[Path]:
    copy = whole.with_name("copy.db")
    shutil.copyfile(whole, copy)
    try:
        yield copy
    finally:
        for path in whole.parent.glob("copy.db*"):
            path.unlink()


@st.composite
def changed(draw: st.DrawFn) -> Tamper:
    """One column of one event becomes another text."""
    seq, column = draw(one_event), draw(st.sampled_from(["time", "kind", "data", "digest"]))
    text = draw(st.text(min_size=1) | st.sampled_from(["{}", "[]", "lease.ended", "0" * 64]))

    def tamper(connection: sqlite3.Connection) -> int:
        sql = f"UPDATE event SET {column} = CASE {column} WHEN ? THEN ? ELSE ? END WHERE run_id = ? AND seq = ?"
        connection.execute(sql, (text, text + "'", text, RUN, seq))
        return seq

    return tamper


@st.composite
def respelled(draw: st.DrawFn) -> Tamper:
    """The data of an event means the same JSON in another spelling, or is stored as another type."""
    seq = draw(one_event)
    spell = draw(st.sampled_from([lambda data: json.dumps(json.loads(data), indent=1), lambda data: data.encode()]))

    def tamper(connection: sqlite3.Connection) -> int:
        (data,) = connection.execute("SELECT data FROM event WHERE run_id = ? AND seq = ?", (RUN, seq)).fetchone()
        connection.execute("UPDATE event SET data = ? WHERE run_id = ? AND seq = ?", (spell(data), RUN, seq))
        return seq

    return tamper


@st.composite
def removed(draw: st.DrawFn) -> Tamper:
    """Some events are gone, in the middle or at the tail."""
    first, last = sorted((draw(one_event), draw(one_event)))

    def tamper(connection: sqlite3.Connection) -> int:
        connection.execute("DELETE FROM event WHERE run_id = ? AND seq BETWEEN ? AND ?", (RUN, first, last))
        return first

    return tamper


@st.composite
def closed_up(draw: st.DrawFn) -> Tamper:
    """An event is gone and the following ones have moved up."""
    seq = draw(one_event)

    def tamper(connection: sqlite3.Connection) -> int:
        connection.execute("DELETE FROM event WHERE run_id = ? AND seq = ?", (RUN, seq))
        for later in range(seq + 1, EVENTS + 1):
            connection.execute("UPDATE event SET seq = seq - 1 WHERE run_id = ? AND seq = ?", (RUN, later))
        return seq

    return tamper


@st.composite
def swapped(draw: st.DrawFn) -> Tamper:
    """Two events have changed places."""
    one, other = sorted(draw(st.lists(one_event, min_size=2, max_size=2, unique=True)))

    def tamper(connection: sqlite3.Connection) -> int:
        for before, after in ((one, -1), (other, one), (-1, other)):
            connection.execute("UPDATE event SET seq = ? WHERE run_id = ? AND seq = ?", (after, RUN, before))
        return one

    return tamper


@st.composite
def inserted(draw: st.DrawFn) -> Tamper:
    """A copy of an event of this run or another stands before the first, or after the last."""
    source, run = draw(one_event), draw(st.sampled_from([RUN, "run_2"]))
    seq, found = draw(st.sampled_from([(0, 1), (-3, 1), (EVENTS + 1, EVENTS + 1), (EVENTS + 5, EVENTS + 1)]))

    def tamper(connection: sqlite3.Connection) -> int:
        sql = "INSERT INTO event SELECT ?, ?, time, kind, data, digest, kept FROM event WHERE run_id = ? AND seq = ?"
        connection.execute(sql, (RUN, seq, run, source))
        return found

    return tamper


@st.composite
def replaced_by_another_run(draw: st.DrawFn) -> Tamper:
    """The history of another run, whole in itself, stands in the place of this one."""
    move_head = draw(st.booleans())

    def tamper(connection: sqlite3.Connection) -> int:
        connection.execute("DELETE FROM event WHERE run_id = ?", (RUN,))
        connection.execute("UPDATE event SET run_id = ? WHERE run_id = 'run_2'", (RUN,))
        if move_head:
            connection.execute("UPDATE run SET head = (SELECT head FROM run WHERE run_id = 'run_2')")
        return 1

    return tamper


@st.composite
def head_changed(draw: st.DrawFn) -> Tamper:
    """The head that the run keeps does not fit the events."""
    head = draw(st.text(alphabet="0123456789abcdef", min_size=64, max_size=64))

    def tamper(connection: sqlite3.Connection) -> int:
        connection.execute("UPDATE run SET head = ? WHERE run_id = ?", (head, RUN))
        return EVENTS

    return tamper


def run_removed(connection: sqlite3.Connection) -> int:
    """The run is gone while its events are still there."""
    connection.execute("DELETE FROM run WHERE run_id = ?", (RUN,))
    return 1


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        changed(),
        respelled(),
        removed(),
        closed_up(),
        swapped(),
        inserted(),
        replaced_by_another_run(),
        head_changed(),
        st.just(run_removed),
    )
)
def test_tampering_is_found_at_the_first_event_that_was_touched(whole: Path, tamper: Tamper) -> None:
    with copied(whole) as path:
        with closing(sqlite3.connect(path)) as connection, connection:
            found_at = tamper(connection)
        with open_ledger(str(path), clock=SystemClock()) as ledger:
            assert ledger.verify(RUN) == found_at


def test_an_untouched_history_is_whole(whole: Path) -> None:
    with copied(whole) as path, open_ledger(str(path), clock=SystemClock()) as ledger:
        assert (ledger.verify(RUN), ledger.verify("run_2")) == (None, None)
        assert len(ledger.events(RUN)) == EVENTS
