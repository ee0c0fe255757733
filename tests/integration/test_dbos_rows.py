"""What DBOS reads from its tables is data and never code: no pickle is read, in whichever of them it is planted."""

from __future__ import annotations

import asyncio
import base64
import logging
import pickle
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
from bench import Bench, Setup
from dbos import DBOS, DBOSClient, SetWorkflowID
from dbos._serialization import DBOSPortableJSON
from fork_server import ForkServer
from psycopg import sql
from queued import put, shared
from test_shared_queue import Crew
from waiting import wait_for

from orchestrator.actions.catalog import catalog
from orchestrator.clock import SystemClock
from orchestrator.ledger.location import locate
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.states import RunState
from orchestrator.queue import rows as dbos_rows
from orchestrator.queue.executor import Asked, Executor, Room
from orchestrator.queue.names import FORMAT, SCHEMA, WORKFLOW
from orchestrator.queue.opening import shared_queue
from orchestrator.workflow.loader import load_text

pytestmark = pytest.mark.parametrize("setup", ["queue"], indirect=True)

INTERNAL = "_dbos_internal_queue"
QUEUES = (INTERNAL, "runs")
WITH_ENCODING = {
    "workflow_status",
    "operation_outputs",
    "notifications",
    "workflow_events",
    "workflow_events_history",
    "streams",
}
JOB = """
version: 1
name: job
agent: tester
steps:
  only: { action: exec, with: { command: [/bin/true] } }
"""


@DBOS.workflow(name="rows.receives")
async def receives() -> Any:
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


class Always(Room):
    """There is room for everything."""

    def left(self) -> int:
        return 100

    def is_closed(self, workflow: str) -> bool:
        return False


@dataclass
class Reads:
    """DBOS in this process, which is handed runs and says at once that they have succeeded."""

    setup: Setup
    handed: list[str] = field(default_factory=list)

    async def carry(self, run_id: str, asked: Asked) -> str:
        self.handed.append(run_id)
        return RunState.SUCCEEDED

    async def honest_run(self) -> str:
        """What is put in is handed out."""
        with shared(self.setup.ledger_url) as queue:
            run_id = put(queue, load_text(JOB, filename="job.yaml", actions=catalog))
        await until(lambda: status_of(self.setup, run_id) == "SUCCESS")
        assert run_id in self.handed
        return run_id


@asynccontextmanager
async def launched(setup: Setup) -> AsyncIterator[tuple[Reads, str]]:
    """DBOS in this process, and the id of a run that it has been handed."""
    reads = Reads(setup)
    executor = Executor(locate(setup.ledger_url), worker="one", room=Always(), carry=reads.carry)
    await executor.launch()
    try:
        yield reads, await reads.honest_run()
    finally:
        await executor.aclose()


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
    status: str = "SUCCESS",
    serialization: str = "py_pickle",
    **columns: Any,
) -> None:
    """A workflow as somebody writes it who may insert into two tables."""
    row = {
        "workflow_uuid": workflow,
        "status": status,
        "name": WORKFLOW,
        "created_at": 1,
        "updated_at": 1,
        "priority": 0,
        "recovery_attempts": 0,
        "serialization": serialization,
        "application_version": FORMAT,
        **columns,
    }
    execute(setup, *insert("workflow_status", row))
    if inputs is not None:
        execute(
            setup,
            *insert("workflow_input", {"workflow_uuid": workflow, "inputs": inputs, "retention_timestamp": 1}),
        )


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

    @pytest.mark.parametrize("queue", QUEUES)
    async def test_the_input_of_an_entry(self, setup: Setup, pickled: str, mark: Path, queue: str) -> None:
        async with launched(setup) as (reads, _):
            open_the_tables(setup)
            entry: Any = {"inputs": pickled, "status": "ENQUEUED", "queue_name": queue, "queue_partition_key": "job"}
            plant(setup, "w1", **entry)
            plant(setup, "w2", **entry, name="no.such.workflow")
            await until(lambda: {status_of(setup, "w1"), status_of(setup, "w2")} == {"PENDING"})
            assert {"w1", "w2"}.isdisjoint(reads.handed)
            await reads.honest_run()
        assert not mark.exists()

    async def test_lists_and_the_state_of_a_workflow(self, setup: Setup, pickled: str, mark: Path) -> None:
        async with launched(setup) as (reads, _):
            open_the_tables(setup)
            plant(setup, "w", inputs=pickled, status="PENDING")
            found = await DBOS.list_workflows_async(workflow_ids=["w"])
            assert [status.input for status in found] == [pickled], "it is shown as the text that it is"
            handle: Any = await DBOS.retrieve_workflow_async("w")
            assert (await handle.get_status()).input == pickled
            await reads.honest_run()
        assert not mark.exists()

    @pytest.mark.parametrize("column", ["output", "error"])
    async def test_the_outcome_of_a_workflow(self, setup: Setup, pickled: str, mark: Path, column: str) -> None:
        async with launched(setup) as (reads, _):
            open_the_tables(setup)
            plant(setup, "w", status={"output": "SUCCESS", "error": "ERROR"}[column])
            query = f"INSERT INTO workflow_output (workflow_uuid, {column}, retention_timestamp) VALUES (%s, %s, 1)"
            execute(setup, query, "w", pickled)
            handle: Any = await DBOS.retrieve_workflow_async("w")
            with pytest.raises(dbos_rows.PickleRefused):
                await handle.get_result()
            await reads.honest_run()
        assert not mark.exists()

    @pytest.mark.parametrize("column", ["output", "error"])
    async def test_the_steps_of_a_workflow(self, setup: Setup, pickled: str, mark: Path, column: str) -> None:
        async with launched(setup) as (reads, run_id):
            open_the_tables(setup)
            step = {"workflow_uuid": run_id, "function_id": 1, "function_name": "f", column: pickled}
            execute(setup, *insert("operation_outputs", {**step, "serialization": "py_pickle"}))
            steps = await DBOS.list_workflow_steps_async(run_id)
            assert len(steps) == 1
            assert pickled in (str(steps[0]["output"]), str(steps[0]["error"]))
            await reads.honest_run()
        assert not mark.exists()

    async def test_a_message(self, setup: Setup, pickled: str, mark: Path) -> None:
        async with launched(setup) as (reads, _):
            open_the_tables(setup)
            with SetWorkflowID("w"):
                task = asyncio.create_task(receives())
            await until(lambda: execute(setup, "SELECT 1 FROM workflow_status WHERE workflow_uuid = 'w'"))
            message = {"destination_uuid": "w", "topic": "t", "message": pickled, "serialization": "py_pickle"}
            execute(setup, *insert("notifications", message))
            with pytest.raises(Exception, match="pickle"):
                await task
            await reads.honest_run()
        assert not mark.exists()

    @pytest.mark.parametrize("table", ["workflow_events", "workflow_events_history"])
    async def test_an_event(self, setup: Setup, pickled: str, mark: Path, table: str) -> None:
        async with launched(setup) as (reads, run_id):
            open_the_tables(setup)
            for name, extra in (("workflow_events", {}), ("workflow_events_history", {"function_id": 1})):
                if name == "workflow_events" or table == name:
                    row = {"workflow_uuid": run_id, "key": "k", "value": pickled, "serialization": "py_pickle", **extra}
                    execute(setup, *insert(name, row))
            with pytest.raises(dbos_rows.PickleRefused):
                await DBOS.get_event_async(run_id, "k", timeout_seconds=5)
            with pytest.raises(dbos_rows.PickleRefused):
                await DBOS.get_all_events_async(run_id)
            await reads.honest_run()
        assert not mark.exists()

    async def test_a_stream(self, setup: Setup, pickled: str, mark: Path) -> None:
        async with launched(setup) as (reads, run_id):
            open_the_tables(setup)
            row = {"workflow_uuid": run_id, "key": "k", "value": pickled, "offset": 0, "function_id": 1}
            execute(setup, *insert("streams", {**row, "serialization": "py_pickle"}))
            with pytest.raises(dbos_rows.PickleRefused):
                [value async for value in DBOS.read_stream_async(run_id, "k")]
            await reads.honest_run()
        assert not mark.exists()

    async def test_what_is_to_be_written_is_not_pickled_either(self, setup: Setup) -> None:
        """A caller may ask for it, whatever serializer DBOS was given."""
        async with launched(setup) as (_, run_id):
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
    async def test_every_table_that_says_how_a_row_is_encoded_refuses_other_encodings(self, setup: Setup) -> None:
        async with launched(setup) as (_, run_id):
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
        self, setup: Setup, pickled: str, mark: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with launched(setup) as (_, run_id):
            pass
        constraints = execute(
            setup, "SELECT oid FROM pg_constraint WHERE conname = %s ORDER BY 1", dbos_rows.CONSTRAINT
        )
        with shared(setup.ledger_url) as queue:
            queue.prepare()
        again = execute(setup, "SELECT oid FROM pg_constraint WHERE conname = %s ORDER BY 1", dbos_rows.CONSTRAINT)
        assert again == constraints
        assert len(again) == len(WITH_ENCODING)
        open_the_tables(setup)
        plant(setup, "before", inputs=pickled, status="PENDING")
        plant(setup, "waits", inputs=pickled, status="ENQUEUED", queue_name="somewhere")
        with caplog.at_level(logging.WARNING), shared(setup.ledger_url) as queue:
            queue.prepare()
        assert "2 rows" in caplog.text
        kept = {workflow for (workflow,) in execute(setup, "SELECT workflow_uuid FROM workflow_status")}
        assert run_id in kept
        assert kept.isdisjoint({"before", "waits"})
        assert not mark.exists()

    async def test_tables_of_another_role_are_told_of(
        self, bench: Bench, setup: Setup, caplog: pytest.LogCaptureFixture
    ) -> None:
        open_the_tables(setup)
        role = "dbos_rows_user"
        bench.sql(f"CREATE ROLE {role} LOGIN PASSWORD 'nothing'")
        try:
            execute(setup, f"GRANT USAGE, CREATE ON SCHEMA {SCHEMA} TO {role}")
            execute(setup, f"GRANT ALL ON ALL TABLES IN SCHEMA {SCHEMA}, public TO {role}")
            url = locate(setup.ledger_url).url.set(username=role, password="nothing")
            with (
                caplog.at_level(logging.WARNING),
                open_ledger(setup.ledger_url, clock=SystemClock()) as ledger,
                shared_queue(url.render_as_string(hide_password=False), ledger.queue) as queue,
            ):
                queue.prepare()
                assert queue.claimed() == []
        finally:
            execute(setup, f"DROP OWNED BY {role}")
            bench.sql(f"DROP ROLE {role}")
        assert "not closed to pickled rows" in caplog.text
        assert dbos_rows.CONSTRAINT in caplog.text


@pytest.fixture
def crew(bench: Bench, setup: Setup, tmp_path: Path, children: ForkServer) -> Iterator[Crew]:
    with Crew(bench, setup, tmp_path / "marks", children) as crew:
        yield crew


@pytest.mark.parametrize("where", ["before it begins", "while it works"])
def test_a_worker_lives_on_beside_planted_pickles_and_carries_out_what_is_queued(
    crew: Crew, pickled: str, mark: Path, where: str
) -> None:
    """The worker closes the tables when it begins: what was planted before is taken out, what comes later not read."""
    setup = crew.setup
    loaded = crew.loaded("job", top="max_runs: 1")

    def carried_out() -> str:
        with shared(crew.ledger_url) as queue:
            run_id = put(queue, loaded)
        wait_for(lambda: (run := crew.run(run_id)) is not None and run.state is RunState.SUCCEEDED, "a run", 60)
        wait_for(lambda: status_of(setup, run_id) == "SUCCESS", "its end in DBOS", 60)
        return run_id

    def planted() -> None:
        open_the_tables(setup)
        for number, queue in enumerate((*QUEUES, "runs-max-1")):
            entry: Any = {"inputs": pickled, "queue_name": queue, "queue_partition_key": "job"}
            plant(setup, f"p{number}", status="ENQUEUED", **entry)
            plant(setup, f"q{number}", status="PENDING", executor_id="nobody", **entry)
            plant(setup, f"r{number}", status="DELAYED", delay_until_epoch_ms=1, **entry)

    def of_planted() -> set[str]:
        return {
            state
            for (state,) in execute(setup, "SELECT status FROM workflow_status WHERE workflow_uuid ~ '^[pqr][0-9]$'")
        }

    if where == "before it begins":
        planted()
    worker = crew.worker()
    before = carried_out()
    if where == "while it works":
        with shared(crew.ledger_url) as queue:
            portable = put(queue, loaded, delay=3600.0)
        planted()
        text = DBOSPortableJSON.serialize({"positionalArgs": [], "namedArgs": {}})
        execute(setup, "UPDATE workflow_input SET inputs = %s WHERE workflow_uuid = %s", text, portable)
        query = (
            "UPDATE workflow_status SET serialization = 'portable_json', status = 'ENQUEUED' WHERE workflow_uuid = %s"
        )
        execute(setup, query, portable)
        wait_for(lambda: status_of(setup, portable) == "SUCCESS", "what is well encoded", 60)
        wait_for(lambda: of_planted() == {"CANCELLED"}, "the planted ones to be over", 60)
    after = carried_out()
    assert worker.poll() is None
    worker.terminate()
    assert worker.wait(60) == 0
    assert crew.done() == ["job "] * (3 if where == "while it works" else 2)
    assert before != after
    assert not mark.exists()
