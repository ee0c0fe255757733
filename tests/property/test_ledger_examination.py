"""Whatever is changed in the tables that follow from the events is found; whatever is as it was is called whole."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Integer, Table
from sqlalchemy import text as sql
from test_ledger_tampering import copied

from orchestrator.clock import SystemClock
from orchestrator.ledger.events import (
    AttemptFinished,
    AttemptStarted,
    Event,
    LeaseIssued,
    LeaseRequested,
    LeaseRevocationFailed,
    LeaseRevoked,
    LeaseRevoking,
    RunFinished,
    RunStarted,
    StepFinished,
)
from orchestrator.ledger.findings import Examined
from orchestrator.ledger.location import locate
from orchestrator.ledger.opening import open_ledger, open_reader
from orchestrator.ledger.reading import examination
from orchestrator.ledger.reading.examination import KEPT_BESIDE
from orchestrator.ledger.states import RunState, StepState
from orchestrator.ledger.storage.connect import connect
from orchestrator.ledger.storage.tables import ORIGIN, event, lease, lease_origin, metadata, run, step
from orchestrator.ledger.writing.store import Ledger

RUN, OTHER, GOES_ON = "run_1", "run_2", "run_3"
STATE = {"run": run, "step": step, "lease": lease}
NO_HISTORY = {
    *("schedule", "fire", "runner", "runner_token", "run_owner", "workflow_text", "queued_run", "queue_pause"),
    *("approval", "approval_vote", "request_seen", "agent_block", "gate", "lease_waiter"),
    *("log", "log_leaf", "log_node", "log_checkpoint", "log_published"),  # which are verified by `history verify`
}
"""Tables that follow from no event, and that nobody takes for evidence."""


def of_a_step(run_id: str, name: str) -> list[Event]:
    lease_id = f"lease_{run_id}_{name}"
    request = LeaseRequested(
        lease_id=lease_id, step=name, attempt=1, grant="g", grant_kind="secret", resource="r", scope={"a": 1}, ttl=9
    )
    issued = LeaseIssued(lease_id=lease_id, ttl=9, expires_at=datetime(2030, 1, 1, tzinfo=UTC), vault_lease_id="v")
    failed = LeaseRevocationFailed(lease_id=lease_id, error="no answer")
    revoking = LeaseRevoking(lease_id=lease_id, reason="step ended")
    return [
        AttemptStarted(step=name, attempt=1, step_key=f"{name}-k", action="exec", timeout=9),
        request,
        issued,
        AttemptFinished(step=name, attempt=1, state=StepState.SUCCEEDED, reason=""),
        revoking,
        failed,
        LeaseRevoked(lease_id=lease_id, confirmed_by="vault"),
        StepFinished(step=name, state=StepState.SUCCEEDED, outputs={"rows": [1, 2]}),
    ]


async def write(ledger: Ledger) -> None:
    for run_id in (RUN, OTHER, GOES_ON):
        started = RunStarted(workflow="w", digest="d", agent="a", trigger="manual", inputs={"i": 1}, steps=("s", "t"))
        fence = await ledger.begin_run(run_id, started)
        await ledger.append(run_id, fence, of_a_step(run_id, "s"))
        if run_id != GOES_ON:
            await ledger.append(run_id, fence, of_a_step(run_id, "t"))
            await ledger.append(run_id, fence, [RunFinished(state=RunState.SUCCEEDED, exit_code=0)])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "ledger.db"

    async def go() -> None:
        async with open_ledger(str(path), clock=SystemClock()) as ledger:
            await write(ledger)

    asyncio.run(go())
    return path


@contextmanager
def tampering(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path)) as connection, connection:
        yield connection


def examined(path: Path) -> list[Examined]:
    with open_reader(str(path)) as reader:
        return [found for found in reader.examine_all() if not found.whole]


def one(path: Path, run_id: str = RUN) -> Examined:
    with open_reader(str(path)) as reader:
        return reader.examine(run_id)


def test_every_table_is_compared_or_known_not_to_be_history() -> None:
    compared = {*STATE, event.name, lease_origin.name}
    assert compared | NO_HISTORY == set(metadata.tables), "a new table: does it follow from events?"


def test_what_nobody_has_changed_is_whole(whole: Path) -> None:
    assert examined(whole) == []
    for run_id in (RUN, OTHER, GOES_ON):
        assert one(whole, run_id) == Examined(run_id)


def columns_of(table: Table) -> list[str]:
    return [column.name for column in table.columns if column.name not in KEPT_BESIDE[table.name]]


@st.composite
def a_column(draw: st.DrawFn) -> tuple[Table, str]:
    table = draw(st.sampled_from(list(STATE.values())))
    return table, draw(st.sampled_from(columns_of(table)))


def another(draw: st.DataObject, table: Table, column: str, value: Any) -> Any:
    """Something else of the column's type, or nothing where that is allowed."""
    described = table.columns[column]
    if isinstance(described.type, Integer):
        other: st.SearchStrategy[Any] = st.integers(min_value=-(2**31), max_value=2**31 - 1)
    else:
        other = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
    if described.nullable:
        other = other | st.none()
    if column == "run_id":
        other = st.just(OTHER)
    if column in ("step", "lease_id"):
        other = other.map(lambda name: f"x{name}")
    return draw.draw(other.filter(lambda candidate: candidate != value))


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=a_column(), draw=st.data())
def test_any_changed_column_of_any_row_is_found_and_named(whole: Path, where: tuple[Table, str], draw: Any) -> None:
    table, column = where
    with copied(whole) as path:
        with tampering(path) as connection:
            keys = [key.name for key in table.primary_key]
            chosen = ", ".join([*keys, f'"{column}"'])
            rows = connection.execute(f"SELECT {chosen} FROM {table.name} WHERE run_id = ?", (RUN,)).fetchall()
            *key, value = draw.draw(st.sampled_from(rows))
            where_key = " AND ".join(f"{name} = ?" for name in keys)
            changed = another(draw, table, column, value)
            connection.execute(f'UPDATE {table.name} SET "{column}" = ? WHERE {where_key}', (changed, *key))
        differences = [each for found in examined(path) for each in found.differences if each.table != "lease_origin"]
        if column == "run_id" or column in table.primary_key:
            assert {each.what for each in differences} == {"missing", "added"}
        else:
            [difference] = differences
            assert (difference.table, difference.columns) == (table.name, (column,))
            assert not one(path).whole


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(table=st.sampled_from([run, step, lease]), draw=st.data())
def test_any_removed_row_is_found(whole: Path, table: Table, draw: Any) -> None:
    with copied(whole) as path:
        with tampering(path) as connection:
            keys = [key.name for key in table.primary_key]
            rows = connection.execute(f"SELECT {', '.join(keys)} FROM {table.name}").fetchall()
            key = draw.draw(st.sampled_from(rows))
            connection.execute(f"DELETE FROM {table.name} WHERE {' AND '.join(f'{name} = ?' for name in keys)}", key)
        [found] = examined(path)
        if table is run:
            assert (found.run_id, found.first_broken_event) == (key[0], 1)
        else:
            assert [(each.table, each.key, each.what) for each in found.differences] == [
                (table.name, key[-1], "missing")
            ]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    table=st.sampled_from([step, lease]),
    of_run=st.sampled_from([RUN, GOES_ON, "run_0", "run_unknown"]),
    key=st.text("abcxyz_", min_size=3, max_size=9),
)
def test_any_added_row_is_found_whatever_run_it_is_said_to_be_of(
    whole: Path, table: Table, of_run: str, key: str
) -> None:
    with copied(whole) as path:
        with tampering(path) as connection:
            names = [column.name for column in table.columns]
            source = connection.execute(f"SELECT * FROM {table.name} WHERE run_id = ?", (RUN,)).fetchone()
            row = {**dict(zip(names, source, strict=True)), "run_id": of_run}
            row["step" if table is step else "lease_id"] = key
            marks = ", ".join("?" for _ in row)
            connection.execute(f"INSERT INTO {table.name} VALUES ({marks})", tuple(row.values()))
        [found] = examined(path)
        assert found.run_id == of_run
        assert [(each.table, each.key, each.what) for each in found.differences] == [(table.name, key, "added")]
        assert one(path, of_run) == found


def test_an_added_run_is_found(whole: Path) -> None:
    with copied(whole) as path:
        with tampering(path) as connection:
            connection.execute("CREATE TEMP TABLE one AS SELECT * FROM run WHERE run_id = ?", (RUN,))
            connection.execute("UPDATE one SET run_id = 'run_made_up'")
            connection.execute("INSERT INTO run SELECT * FROM one")
        assert examined(path) == [Examined("run_made_up", first_broken_event=1)]


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("DELETE FROM lease_origin WHERE step = 's'", "missing"),
        ("UPDATE lease_origin SET resource = 'elsewhere' WHERE step = 's'", "missing"),
        ("INSERT INTO lease_origin VALUES ('w', 's', 'a', 'secret', 'made up')", "added"),
    ],
)
def test_what_filters_find_leases_by_is_compared_too(whole: Path, statement: str, what: str) -> None:
    with copied(whole) as path:
        with tampering(path) as connection:
            connection.execute(statement)
        [found] = examined(path)
        assert what in {each.what for each in found.differences}
        assert {each.table for each in found.differences} == {"lease_origin"}
        assert one(path).whole is (what == "added"), "one run knows what it lacks"
    assert len(ORIGIN) == 5


def test_rows_of_a_broken_history_are_not_compared(whole: Path) -> None:
    with copied(whole) as path:
        with tampering(path) as connection:
            for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
                connection.execute(f"DROP TRIGGER {name}")
            connection.execute("UPDATE event SET data = '[]' WHERE run_id = ? AND seq = 4", (RUN,))
            connection.execute("UPDATE step SET state = 'failed' WHERE run_id = ?", (RUN,))
        assert examined(path) == [Examined(RUN, first_broken_event=4)]


def test_more_runs_than_are_read_at_once_and_longer_ones_are_all_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examination, "RUNS_AT_ONCE", 3)
    monkeypatch.setattr(examination, "ROWS_AT_ONCE", 4)
    path = tmp_path / "many.db"

    async def go() -> None:
        async with open_ledger(str(path), clock=SystemClock()) as ledger:
            for number in range(10):
                started = RunStarted(workflow="w", digest="d", agent="a", trigger="manual", inputs={}, steps=("s",))
                fence = await ledger.begin_run(f"run_{number}", started)
                await ledger.append(f"run_{number}", fence, of_a_step(f"run_{number}", "s"))

    asyncio.run(go())
    with open_reader(str(path)) as reader:
        assert [found.run_id for found in reader.examine_all()] == [f"run_{number}" for number in range(10)]
    with tampering(path) as connection:
        connection.execute("UPDATE lease SET ttl = 10 WHERE run_id IN ('run_0', 'run_5', 'run_9')")
    assert [found.run_id for found in examined(path)] == ["run_0", "run_5", "run_9"]


@pytest.mark.parametrize("where", ["sqlite", "postgresql"])
async def test_runs_that_go_on_meanwhile_are_seen_as_they_were_at_one_moment(
    tmp_path: Path, request: pytest.FixtureRequest, where: str
) -> None:
    url = str(tmp_path / "busy.db") if where == "sqlite" else request.getfixturevalue("new_database")
    async with open_ledger(url, clock=SystemClock()) as ledger:
        over = asyncio.Event()

        async def busy(number: int) -> None:
            while not over.is_set():
                run_id = f"run_{number}_{busy_count[number]}"
                started = RunStarted(workflow="w", digest="d", agent="a", trigger="manual", inputs={}, steps=("s",))
                fence = await ledger.begin_run(run_id, started)
                for each in of_a_step(run_id, "s"):
                    await ledger.append(run_id, fence, [each])
                busy_count[number] += 1

        busy_count = [0, 0, 0]
        tasks = [asyncio.create_task(busy(number)) for number in range(3)]
        for _ in range(15):
            seen = await asyncio.to_thread(lambda: list(ledger.examine_all()))
            assert [found for found in seen if not found.whole] == []
        over.set()
        await asyncio.gather(*tasks)
        assert sum(busy_count) > 0


def test_it_is_the_same_on_postgresql(new_database: str) -> None:
    async def go() -> None:
        async with open_ledger(new_database, clock=SystemClock()) as ledger:
            await write(ledger)
            assert [found for found in ledger.examine_all() if not found.whole] == []
            engine = connect(locate(new_database))
            try:
                with engine.begin() as connection:
                    connection.execute(sql("UPDATE lease SET agent = 'b', scope = '{}' WHERE run_id = 'run_2'"))
                    connection.execute(sql("DELETE FROM step WHERE run_id = 'run_1' AND step = 't'"))
            finally:
                engine.dispose()
            first, second = [found for found in ledger.examine_all() if found.run_id and not found.whole]
            assert [str(each) for each in first.differences] == ["step t: missing"]
            assert {each.columns for each in second.differences} == {("agent", "scope")}
            assert ledger.examine("run_3").whole

    asyncio.run(go())
