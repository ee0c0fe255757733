"""Who may write DBOS's tables starts nothing that nobody asked for, and holds up nothing that somebody did."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from bench import Bench, Setup
from dbos import DBOSClient
from dbos._serialization import DBOSPortableJSON
from fork_server import ForkServer
from queued import put, shared
from test_dbos_rows import execute, plant, status_of
from test_shared_queue import Crew
from waiting import wait_for

from orchestrator.assembly import open_services
from orchestrator.clock import SystemClock
from orchestrator.ledger.events import RunFinished, RunStarted, RunTakenOver
from orchestrator.ledger.ids import new_run_id
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.states import RunState
from orchestrator.queue.names import SCHEMA
from orchestrator.queue.tables import QueueState
from orchestrator.redaction.redactor import Redactor
from orchestrator.workflow.loader import LoadedWorkflow

pytestmark = pytest.mark.parametrize("setup", ["queue"], indirect=True)

INTERNAL, PLAIN, ALONE = "_dbos_internal_queue", "runs", "runs-max-1"
OVER = {"SUCCESS", "ERROR", "CANCELLED"}


class Planted(Crew):
    """A crew beside somebody who may write into DBOS's tables."""

    def entry(self, run_id: str, *arguments: Any, queue: str = PLAIN, named: Any = None, **columns: Any) -> None:
        inputs = DBOSPortableJSON.serialize({"positionalArgs": arguments, "namedArgs": named or {}})
        row = {"queue_name": queue, "queue_partition_key": None if queue == INTERNAL else "job", **columns}
        plant(self.setup, run_id, **{"status": "ENQUEUED", "inputs": inputs, "serialization": "portable_json", **row})

    def status(self, run_id: str) -> str:
        return status_of(self.setup, run_id)

    def over(self, run_id: str) -> str:
        wait_for(lambda: self.status(run_id) in OVER, f"DBOS to have an end of {run_id}", 40)
        return self.status(run_id)

    def history(self, run_id: str) -> list[str]:
        with open_ledger(self.ledger_url, clock=SystemClock()) as ledger:
            assert ledger.verify(run_id) is None
            return [event.kind for event in ledger.events(run_id)]

    def job(self) -> LoadedWorkflow:
        return self.loaded("job", top="max_runs: 1")

    def carried_out(self, loaded: LoadedWorkflow) -> str:
        """An honest run, which comes to its end."""
        with shared(self.ledger_url) as queue:
            run_id = put(queue, loaded)
        record = wait_for(lambda: self.ended(run_id), "an honest run", 40)
        assert record.state is RunState.SUCCEEDED
        assert self.over(run_id) == "SUCCESS"
        return run_id

    def client(self) -> closing[Any]:
        client = DBOSClient(system_database_url=self.ledger_url, dbos_system_schema=SCHEMA)
        client.close = client.destroy  # type: ignore[attr-defined]
        return closing(client)


@pytest.fixture
def crew(bench: Bench, setup: Setup, tmp_path: Path, children: ForkServer) -> Iterator[Planted]:
    with Planted(bench, setup, tmp_path / "marks", children) as crew:
        yield crew


UNKNOWN: dict[str, dict[str, Any]] = {
    "nothing": {},
    "nonsense": {"arguments": ({"a": 1}, "b")},
    "too much": {"arguments": ("job", {}, "", 4)},
    "what there is not": {"named": {"program": "/bin/sh"}},
    "a workflow that is not offered": {"named": {"workflow": "job", "inputs": {}}},
}


@pytest.mark.parametrize("queue", [INTERNAL, PLAIN, ALONE])
def test_an_entry_of_an_unknown_run_carries_nothing_out(crew: Planted, queue: str) -> None:
    loaded = crew.job()
    worker = crew.worker()
    crew.carried_out(loaded)
    ids = {what: new_run_id() for what in UNKNOWN}
    for what, how in UNKNOWN.items():
        crew.entry(ids[what], *how.get("arguments", ()), queue=queue, named=how.get("named"))
    assert {crew.over(run_id) for run_id in ids.values()} == {"ERROR"}
    assert [crew.run(run_id) for run_id in ids.values()] == [None] * len(ids)
    crew.carried_out(loaded)
    assert crew.done() == ["job "] * 2
    assert worker.poll() is None


FOREIGN: dict[str, dict[str, Any]] = {
    "of another name": {"name": "no.such.workflow"},
    "of a class": {"class_name": "Some"},
    "of an instance": {"class_name": "Some", "config_name": "one"},
    "claimed by nobody": {"status": "PENDING"},
    "claimed by a stranger": {"status": "PENDING", "executor_id": "a-stranger"},
    "of another application": {"status": "PENDING", "executor_id": "a-stranger", "application_name": "another"},
    "due long ago": {"status": "DELAYED", "delay_until_epoch_ms": 1},
}


@pytest.mark.parametrize("what", FOREIGN)
def test_an_entry_that_is_no_run_does_not_keep_its_place(crew: Planted, what: str) -> None:
    """Of this workflow one run may go on at once: while the entry has its place, none does."""
    loaded = crew.job()
    crew.worker()
    crew.carried_out(loaded)
    crew.entry("planted", queue=ALONE, **FOREIGN[what])
    crew.carried_out(loaded)
    assert crew.run("planted") is None
    assert crew.done() == ["job "] * 2
    if what != "of another application":  # which waits for that one
        crew.over("planted")


def test_a_run_that_has_ended_stays_so(crew: Planted) -> None:
    loaded = crew.job()
    crew.worker()
    of_queue, of_command = crew.carried_out(loaded), new_run_id()
    path = crew.bench.directory / "job.yaml"
    path.write_text(loaded.text)
    assert crew.command("run", str(path), "--run-id", of_command).returncode == 0
    before = [crew.history(run_id) for run_id in (of_queue, of_command)]
    execute(
        crew.setup,
        "UPDATE workflow_status SET status = 'ENQUEUED', queue_name = 'runs', completed_at = NULL "
        "WHERE workflow_uuid = %s",
        of_queue,
    )
    crew.entry(of_command)
    assert (crew.over(of_queue), crew.over(of_command)) == ("SUCCESS", "SUCCESS")
    assert [crew.history(run_id) for run_id in (of_queue, of_command)] == before
    assert crew.done() == ["job "] * 2


@pytest.mark.parametrize("ends", ["by itself", "by a kill"])
def test_a_run_of_a_command_stays_that_commands(crew: Planted, ends: str) -> None:
    crew.worker()
    crew.carried_out(crew.job())
    crew.marks.unlink()
    run_id = new_run_id()
    command = crew.start("run", str(crew.flow("ours")), "--run-id", run_id)
    wait_for(crew.at_work, "the step to hold its login")
    crew.entry(run_id)
    assert crew.over(run_id) == "ERROR"
    if ends == "by itself":
        assert RunTakenOver.kind not in crew.history(run_id)
        assert crew.command("runs", "cancel", run_id).returncode == 0
        assert command.wait(40) == 130
        state = RunState.CANCELLED
    else:
        command.kill()
        command.wait()
        state = RunState.INTERRUPTED
    record = wait_for(lambda: crew.ended(run_id), "its end", 40)
    assert record.state is state
    if ends == "by a kill":
        execute(crew.setup, "DELETE FROM workflow_status WHERE workflow_uuid = %s", run_id)
        execute(crew.setup, "DELETE FROM workflow_input WHERE workflow_uuid = %s", run_id)
        crew.entry(run_id)
        crew.over(run_id)
        assert crew.run(run_id) == record, "who resumes it is a person"
    assert crew.marks.read_text().split() == ["first", "work"]
    wait_for(lambda: crew.bench.logins_of_steps() == [], "the login to be gone", 40)


def test_a_call_of_a_task_stays_that_of_who_answers_the_agent(crew: Planted) -> None:
    crew.worker()
    crew.carried_out(crew.job())
    run_id = new_run_id()

    async def go() -> None:
        config = crew.bench.config(ledger_url=crew.ledger_url)
        async with open_services(config, redactor=Redactor()) as services:
            services.heartbeat.begin(run_id, digest="d", text="t")
            started = RunStarted(
                workflow="w", digest="d", agent="a", trigger="task", inputs={}, steps=("tool",), task="task_1"
            )
            fence = await services.ledger.begin_run(run_id, started)
            crew.entry(run_id)
            assert await asyncio.to_thread(crew.over, run_id) == "ERROR"
            assert crew.history(run_id) == [RunStarted.kind]
            await services.ledger.append(run_id, fence, [RunFinished(state=RunState.SUCCEEDED, exit_code=0)])

    asyncio.run(go())


class TestClient:
    """What people do with DBOS's own client."""

    def test_what_is_resumed_or_forked_there_is_not_carried_out_again(self, crew: Planted) -> None:
        loaded = crew.job()
        crew.worker()
        ended = crew.carried_out(loaded)
        with shared(crew.ledger_url) as queue:
            assert crew.command("queue", "pause").returncode == 0
            removed = put(queue, loaded)
            assert crew.command("queue", "remove", removed).returncode == 0
            assert crew.command("queue", "resume").returncode == 0
        before = crew.history(ended)
        with crew.client() as client:
            for run_id in (ended, removed):
                client.resume_workflow(run_id)
            forked = client.fork_workflow(ended, 1).get_workflow_id()
        assert crew.over(forked) == "ERROR"
        wait_for(lambda: crew.status(removed) == "ERROR", "DBOS to have no run", 40)
        assert crew.over(ended) == "SUCCESS"
        assert (crew.run(removed), crew.run(forked)) == (None, None)
        assert crew.history(ended) == before
        crew.carried_out(loaded)
        assert crew.done() == ["job "] * 2

    def test_a_run_that_goes_on_and_is_resumed_there_goes_on_once(self, crew: Planted) -> None:
        crew.worker()
        crew.worker()
        path = crew.flow("slow", sql="SELECT pg_sleep(6)")
        run_id = new_run_id()
        assert crew.command("queue", "add", str(path), "--run-id", run_id).returncode == 0
        wait_for(crew.bench.logins_of_steps, "the step to hold its login")
        with crew.client() as client:
            client.resume_workflow(run_id)
        record = wait_for(lambda: crew.ended(run_id), "its end", 40)
        assert record.state is RunState.SUCCEEDED, record.reason
        assert RunTakenOver.kind not in crew.history(run_id)
        assert crew.marks.read_text().split() == ["first", "last"]
        assert crew.over(run_id) == "SUCCESS"

    def test_a_run_that_is_cancelled_there_ends_and_what_it_holds_is_revoked(self, crew: Planted) -> None:
        crew.worker()
        run_id = new_run_id()
        assert crew.command("queue", "add", str(crew.flow("slow")), "--run-id", run_id).returncode == 0
        wait_for(crew.at_work, "the step to hold its login")
        with crew.client() as client:
            client.cancel_workflow(run_id)
        record = wait_for(lambda: crew.ended(run_id), "its end", 40)
        assert (record.state, record.reason) == (RunState.CANCELLED, "it was cancelled in DBOS")
        assert crew.bench.logins_of_steps() == []
        assert crew.marks.read_text().split() == ["first", "work"]
        assert crew.status(run_id) == "CANCELLED"
        crew.carried_out(crew.job())

    def test_one_that_is_cancelled_there_before_it_begins_never_does(self, crew: Planted) -> None:
        """Not even when DBOS has forgotten it, after a day."""
        loaded = crew.job()
        with shared(crew.ledger_url) as queue:
            run_id = put(queue, loaded)
            with crew.client() as client:
                client.cancel_workflow(run_id)
            worker = crew.worker()
            wait_for(lambda: not queue.requests.holds(run_id), "it to be taken out", 40)
            worker.terminate()
            worker.wait(40)
            execute(crew.setup, "UPDATE workflow_status SET updated_at = 1 WHERE workflow_uuid = %s", run_id)
            assert queue.tidy(SystemClock().now()) == 1
            crew.worker()
            crew.carried_out(loaded)
            assert queue.list(set(QueueState)) == []
        assert crew.run(run_id) is None
        assert crew.done() == ["job "]
