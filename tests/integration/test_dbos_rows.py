"""Nothing that somebody has written into DBOS's tables becomes code: no pickle is read, and no entry is carried out."""

from __future__ import annotations

import asyncio
import base64
import logging
import pickle
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from bench import Bench, Setup
from dbos import DBOS, DBOSClient, SetWorkflowID
from dbos._serialization import DBOSPortableJSON
from fork_server import orchestrator
from orchestrator.runs.engines.dbos import APPLICATION_VERSION, SCHEMA, WORKFLOW, DbosEngine
from orchestrator.runs.engines.types import Walk
from psycopg import sql

from orchestrator.clock import SystemClock
from orchestrator.ledger.events import RunStarted
from orchestrator.ledger.ids import new_run_id
from orchestrator.ledger.location import locate
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.states import RunState, StepState
from orchestrator.ledger.writing.store import Ledger
from orchestrator.queue import rows as dbos_rows
from orchestrator.runs.graph_walk import Graph

pytestmark = pytest.mark.parametrize("setup", ["postgresql"], indirect=True)

OK = StepState.SUCCEEDED
INTERNAL = "_dbos_internal_queue"
WITH_ENCODING = {
    "workflow_status",
    "operation_outputs",
    "notifications",
    "workflow_events",
    "workflow_events_history",
    "streams",
}


@DBOS.workflow(name="rows.receives")
async def receives(_run_id: str, _fence: int) -> Any:
    return await DBOS.recv_async("t", timeout_seconds=20)


class Payload:
    """Pickled, a program that makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "code-ran"


@pytest.fixture
def pickled(mark: Path) -> str:
    """As DBOS stores a pickle. That it is a program is seen once by running it."""
    text = base64.b64encode(pickle.dumps(Payload(mark))).decode()
    pickle.loads(base64.b64decode(text))
    mark.unlink()
    return text


@pytest.fixture
def ledger(bench: Bench, setup: Setup) -> Iterator[Ledger]:
    with open_ledger(setup.ledger_url, clock=SystemClock()) as ledger:
        yield ledger


def walk(run_id: str, fence: int) -> Walk:
    async def call(step: str) -> StepState:
        return OK

    async def skip(step: str, state: StepState, reason: str) -> None:
        pass

    graph = Graph(dependencies={"a": frozenset()})
    return Walk(run_id=run_id, fence=fence, cancel=print, graph=graph, call=call, skip=skip, parallel=4)


async def honest_run(ledger: Ledger, engine: DbosEngine) -> str:
    run_id = new_run_id()
    started = RunStarted(workflow="w", digest="", agent="a", trigger="test", inputs={}, steps=("a",))
    fence = await ledger.begin_run(run_id, started)
    assert await engine.drive(walk(run_id, fence)) == {"a": OK}
    return run_id


@asynccontextmanager
async def launched(setup: Setup, ledger: Ledger) -> AsyncIterator[tuple[DbosEngine, str]]:
    """The engine in this process, and the id of a run that it has carried out."""
    engine = DbosEngine(locate(setup.ledger_url), reader=ledger, runner_id="one")
    try:
        yield engine, await honest_run(ledger, engine)
    finally:
        await engine.aclose()


def execute(setup: Setup, query: Any, *values: Any) -> list[Any]:
    with psycopg.connect(setup.ledger_url, autocommit=True, options=f"-c search_path={SCHEMA}") as session:
        cursor = session.execute(query, values)
        return cursor.fetchall() if cursor.description else []


def open_the_tables(setup: Setup) -> None:
    """Take the constraints away, so that only what decodes stands between a row and this process."""
    for table in WITH_ENCODING:
        execute(setup, f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {dbos_rows.CONSTRAINT}")


def plant(
    setup: Setup,
    workflow: str,
    *,
    inputs: str | None = None,
    name: str = WORKFLOW,
    queue: str | None = None,
    status: str = "SUCCESS",
    serialization: str = "py_pickle",
) -> None:
    """A workflow as somebody writes it who may insert into two tables."""
    execute(
        setup,
        "INSERT INTO workflow_status (workflow_uuid, status, name, created_at, updated_at, priority, "
        "recovery_attempts, queue_name, serialization, application_version) "
        "VALUES (%s, %s, %s, 1, 1, 0, 0, %s, %s, %s)",
        *(workflow, status, name, queue, serialization, APPLICATION_VERSION),
    )
    if inputs is not None:
        query = "INSERT INTO workflow_input (workflow_uuid, inputs, retention_timestamp) VALUES (%s, %s, 1)"
        execute(setup, query, workflow, inputs)


def status_of(setup: Setup, workflow: str) -> str:
    [(status,)] = execute(setup, "SELECT status FROM workflow_status WHERE workflow_uuid = %s", workflow)
    return str(status)


async def until(condition: Callable[[], Any], seconds: float = 40) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        await asyncio.sleep(0.02)


class TestDecoding:
    """The tables without their constraints: each way in which DBOS comes to decode a row."""

    async def test_the_input_of_an_entry_on_the_internal_queue(
        self, setup: Setup, ledger: Ledger, pickled: str, mark: Path
    ) -> None:
        async with launched(setup, ledger) as (engine, _):
            open_the_tables(setup)
            plant(setup, "w1", inputs=pickled, queue=INTERNAL, status="ENQUEUED")
            plant(setup, "w2", inputs=pickled, queue=INTERNAL, status="ENQUEUED", name="no.such.workflow")
            await until(lambda: {status_of(setup, "w1"), status_of(setup, "w2")}.isdisjoint({"ENQUEUED"}))
            await engine.settle()
            assert status_of(setup, "w1") in ("ERROR", "CANCELLED")
            await honest_run(ledger, engine)
        assert not mark.exists()

    async def test_lists_and_the_state_of_a_workflow(
        self, setup: Setup, ledger: Ledger, pickled: str, mark: Path
    ) -> None:
        async with launched(setup, ledger) as (engine, _):
            open_the_tables(setup)
            plant(setup, "w", inputs=pickled, status="PENDING")
            found = await DBOS.list_workflows_async(workflow_ids=["w"])
            assert [status.input for status in found] == [pickled], "it is shown as the text that it is"
            handle: Any = await DBOS.retrieve_workflow_async("w")
            assert (await handle.get_status()).input == pickled
            await engine.settle()
            assert status_of(setup, "w") == "CANCELLED", "no run of ours"
        assert not mark.exists()

    @pytest.mark.parametrize("column", ["output", "error"])
    async def test_the_outcome_of_a_workflow(
        self, setup: Setup, ledger: Ledger, pickled: str, mark: Path, column: str
    ) -> None:
        async with launched(setup, ledger) as (engine, _):
            open_the_tables(setup)
            plant(setup, "w", status={"output": "SUCCESS", "error": "ERROR"}[column])
            query = f"INSERT INTO workflow_output (workflow_uuid, {column}, retention_timestamp) VALUES (%s, %s, 1)"
            execute(setup, query, "w", pickled)
            handle: Any = await DBOS.retrieve_workflow_async("w")
            with pytest.raises(dbos_rows.PickleRefused):
                await handle.get_result()
            await honest_run(ledger, engine)
        assert not mark.exists()

    @pytest.mark.parametrize("column", ["output", "error"])
    async def test_the_steps_of_a_workflow(
        self, setup: Setup, ledger: Ledger, pickled: str, mark: Path, column: str
    ) -> None:
        async with launched(setup, ledger) as (engine, run_id):
            open_the_tables(setup)
            execute(setup, f"UPDATE operation_outputs SET {column} = %s, serialization = 'py_pickle'", pickled)
            steps = await DBOS.list_workflow_steps_async(run_id)
            assert len(steps) == 1
            assert pickled in (str(steps[0]["output"]), str(steps[0]["error"]))
            await honest_run(ledger, engine)
        assert not mark.exists()

    async def test_a_message(self, setup: Setup, ledger: Ledger, pickled: str, mark: Path) -> None:
        async with launched(setup, ledger) as (engine, _):
            open_the_tables(setup)
            with SetWorkflowID("w"):
                task = asyncio.create_task(receives("w", 1))
            await until(lambda: execute(setup, "SELECT 1 FROM workflow_status WHERE workflow_uuid = 'w'"))
            query = (
                "INSERT INTO notifications (destination_uuid, topic, message, serialization) VALUES (%s, 't', %s, %s)"
            )
            execute(setup, query, "w", pickled, "py_pickle")
            with pytest.raises(Exception, match="pickle"):
                await task
            await honest_run(ledger, engine)
        assert not mark.exists()

    @pytest.mark.parametrize("table", ["workflow_events", "workflow_events_history"])
    async def test_an_event(self, setup: Setup, ledger: Ledger, pickled: str, mark: Path, table: str) -> None:
        async with launched(setup, ledger) as (engine, run_id):
            open_the_tables(setup)
            for name, extra in (("workflow_events", {}), ("workflow_events_history", {"function_id": 1})):
                if name == "workflow_events" or table == name:
                    row = {"workflow_uuid": run_id, "key": "k", "value": pickled, "serialization": "py_pickle", **extra}
                    execute(setup, *insert(name, row))
            with pytest.raises(dbos_rows.PickleRefused):
                await DBOS.get_event_async(run_id, "k", timeout_seconds=5)
            with pytest.raises(dbos_rows.PickleRefused):
                await DBOS.get_all_events_async(run_id)
            await honest_run(ledger, engine)
        assert not mark.exists()

    async def test_a_stream(self, setup: Setup, ledger: Ledger, pickled: str, mark: Path) -> None:
        async with launched(setup, ledger) as (engine, run_id):
            open_the_tables(setup)
            row = {"workflow_uuid": run_id, "key": "k", "value": pickled, "offset": 0, "function_id": 1}
            execute(setup, *insert("streams", {**row, "serialization": "py_pickle"}))
            with pytest.raises(dbos_rows.PickleRefused):
                [value async for value in DBOS.read_stream_async(run_id, "k")]
            await honest_run(ledger, engine)
        assert not mark.exists()

    async def test_what_is_to_be_written_is_not_pickled_either(self, setup: Setup, ledger: Ledger) -> None:
        """A caller may ask for it, whatever serializer DBOS was given."""
        async with launched(setup, ledger) as (_, run_id):
            client = DBOSClient(system_database_url=setup.ledger_url, dbos_system_schema=SCHEMA)
            try:
                with pytest.raises(dbos_rows.PickleRefused):
                    client.send(run_id, {"a": 1})
            finally:
                client.destroy()


def insert(table: str, row: dict[str, Any]) -> tuple[Any, ...]:
    columns = sql.SQL(", ").join(map(sql.Identifier, row))
    values = sql.SQL(", ").join([sql.Placeholder()] * len(row))
    return sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(sql.Identifier(table), columns, values), *row.values()


class TestTables:
    async def test_every_table_that_says_how_a_row_is_encoded_refuses_other_encodings(
        self, setup: Setup, ledger: Ledger
    ) -> None:
        async with launched(setup, ledger) as (_, run_id):
            query = (
                "SELECT table_name FROM information_schema.columns WHERE table_schema = %s "
                "AND column_name = 'serialization'"
            )
            assert {table for (table,) in execute(setup, query, SCHEMA)} == WITH_ENCODING
            rows: dict[str, dict[str, Any]] = {
                "workflow_status": {"workflow_uuid": "w", "created_at": 1, "updated_at": 1, "priority": 0},
                "operation_outputs": {"workflow_uuid": "w", "function_id": 1, "function_name": "f"},
                "notifications": {"destination_uuid": run_id, "message": "m"},
                "workflow_events": {"workflow_uuid": run_id, "key": "k", "value": "v"},
                "workflow_events_history": {"workflow_uuid": run_id, "key": "k", "value": "v", "function_id": 1},
                "streams": {"workflow_uuid": run_id, "key": "k", "value": "v", "offset": 0, "function_id": 1},
            }
            for table, row in rows.items():
                for encoding in ("py_pickle", "some_other"):
                    with pytest.raises(psycopg.errors.CheckViolation, match=dbos_rows.CONSTRAINT):
                        execute(setup, *insert(table, {**row, "serialization": encoding}))
                for known in (dbos_rows.OURS, "portable_json", None):
                    execute(setup, *insert(table, {**row, "serialization": known}))
                    key, value = next(iter(row.items()))
                    execute(setup, f"DELETE FROM {table} WHERE {key} = %s", value)
            with pytest.raises(psycopg.errors.CheckViolation):
                execute(setup, "UPDATE workflow_status SET serialization = 'py_pickle'")

    async def test_they_stay_so_and_what_was_there_before_is_taken_out_and_told(
        self, setup: Setup, ledger: Ledger, pickled: str, mark: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with launched(setup, ledger) as (_, run_id):
            pass
        constraints = execute(
            setup, "SELECT oid FROM pg_constraint WHERE conname = %s ORDER BY 1", dbos_rows.CONSTRAINT
        )
        async with launched(setup, ledger):  # DBOS looks at its tables again
            pass
        again = execute(setup, "SELECT oid FROM pg_constraint WHERE conname = %s ORDER BY 1", dbos_rows.CONSTRAINT)
        assert again == constraints
        assert len(again) == len(WITH_ENCODING)
        open_the_tables(setup)
        plant(setup, "before", inputs=pickled, status="PENDING")
        plant(setup, "waits", inputs=pickled, status="ENQUEUED", queue="somewhere")
        with caplog.at_level(logging.WARNING):
            async with launched(setup, ledger):
                pass
        assert "2 rows" in caplog.text
        kept = {workflow for (workflow,) in execute(setup, "SELECT workflow_uuid FROM workflow_status")}
        assert run_id in kept
        assert kept.isdisjoint({"before", "waits"})
        assert not mark.exists()

    async def test_tables_of_another_role_are_told_of(
        self, bench: Bench, setup: Setup, ledger: Ledger, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with launched(setup, ledger):
            pass
        open_the_tables(setup)
        role = "dbos_rows_user"
        bench.sql(f"CREATE ROLE {role} LOGIN PASSWORD 'nothing'")
        try:
            execute(setup, f"GRANT USAGE, CREATE ON SCHEMA {SCHEMA} TO {role}")
            execute(setup, f"GRANT ALL ON ALL TABLES IN SCHEMA {SCHEMA} TO {role}")
            url = locate(setup.ledger_url).url.set(username=role, password="nothing")
            engine = DbosEngine(locate(url.render_as_string(hide_password=False)), reader=ledger, runner_id="one")
            try:
                with caplog.at_level(logging.WARNING):
                    await honest_run(ledger, engine)
            finally:
                await engine.aclose()
        finally:
            execute(setup, f"DROP OWNED BY {role}")
            bench.sql(f"DROP ROLE {role}")
        assert "not closed to pickled rows" in caplog.text
        assert dbos_rows.CONSTRAINT in caplog.text


class TestEntries:
    """An entry that is well encoded, for a run that nobody here has begun."""

    @pytest.mark.parametrize("about", ["an unknown run", "a running run", "nonsense", "too much"])
    async def test_an_entry_on_the_internal_queue_carries_nothing_out(
        self, setup: Setup, ledger: Ledger, caplog: pytest.LogCaptureFixture, about: str
    ) -> None:
        async with launched(setup, ledger) as (engine, _):
            run_id = new_run_id()
            if about == "a running run":
                started = RunStarted(workflow="w", digest="", agent="a", trigger="test", inputs={}, steps=("a",))
                await ledger.begin_run(run_id, started)
            arguments: Any = {"nonsense": ({"a": 1}, "b"), "too much": (run_id, 1, 2)}.get(about, (run_id, 1))
            text = DBOSPortableJSON.serialize({"positionalArgs": arguments, "namedArgs": {}})
            with caplog.at_level(logging.WARNING):
                plant(setup, "w", inputs=text, queue=INTERNAL, status="ENQUEUED", serialization="portable_json")
                await until(lambda: status_of(setup, "w") == "ERROR")
            if about != "too much":
                assert "nothing was carried out" in caplog.text
            kinds = [event.kind for event in ledger.events(run_id)]
            assert kinds == (["run.started"] if about == "a running run" else [])
            await honest_run(ledger, engine)


JOB = """
version: 1
name: job
agent: tester
steps:
  only: { action: exec, with: { command: [/bin/true] } }
"""


def test_a_worker_lives_on_beside_planted_entries_and_carries_out_what_is_queued(
    bench: Bench, setup: Setup, pickled: str, mark: Path
) -> None:
    environment = {
        **bench.environment(),
        "ORCHESTRATOR_POLICY": "allow-all",
        "ORCHESTRATOR_LEDGER_URL": setup.ledger_url,
    }
    (bench.directory / "job.yaml").write_text(JOB)
    command = orchestrator()

    def carried_out(run_id: str) -> None:
        add = [*command, "queue", "add", str(bench.directory / "job.yaml"), "--run-id", run_id]
        subprocess.run(add, env=environment, check=True, capture_output=True, timeout=60)
        wait(lambda: (run := ledger.run(run_id)) is not None and run.state is RunState.SUCCEEDED)

    def wait(condition: Callable[[], Any]) -> None:
        end = time.monotonic() + 60
        while not condition():
            assert worker.poll() is None, "the worker has ended"
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.05)

    log = (bench.directory / "worker.log").open("w+")
    with log, open_ledger(setup.ledger_url, clock=SystemClock()) as ledger:
        worker = subprocess.Popen(
            [*command, "worker", "--no-listen", "--engine", "dbos", "--drain", "1"], env=environment, stderr=log
        )
        try:
            carried_out("before")
            open_the_tables(setup)
            plant(setup, "p1", inputs=pickled, queue=INTERNAL, status="ENQUEUED")
            plant(setup, "p2", inputs=pickled, status="PENDING")
            text = DBOSPortableJSON.serialize({"positionalArgs": ["before", 1], "namedArgs": {}})
            plant(setup, "p3", inputs=text, queue=INTERNAL, status="ENQUEUED", serialization="portable_json")
            wait(lambda: status_of(setup, "p1") != "ENQUEUED" and status_of(setup, "p3") == "ERROR")
            carried_out("after")
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(60) == 0
        finally:
            worker.kill()
            worker.wait()
        log.seek(0)
        assert "nothing was carried out" in log.read()
    assert not mark.exists()
