"""The shared queue with real workers: what is next, what waits, and what people see of it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest
from bench import Bench, Setup
from fork_server import ForkServer
from queued import put, shared
from team import Team
from waiting import wait_for

from orchestrator.actions.catalog import catalog
from orchestrator.clock import SystemClock
from orchestrator.ledger.coordination.queue import NotAlone
from orchestrator.ledger.coordination.schedules import ScheduleState, open_schedules
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.states import RunState
from orchestrator.queue.tables import QueueState
from orchestrator.workflow.loader import LoadedWorkflow, load_text

pytestmark = pytest.mark.parametrize("setup", ["queue"], indirect=True)

FLOW = """
version: 1
name: {name}
agent: tester
inputs: {{ mark: {{ type: string, default: "" }} }}
{top}
steps:
  mark:
    action: exec
    with:
      command: [/bin/sh, -c, 'echo "$0" >> {marks}; {then}', "{name} ${{{{ inputs.mark }}}}"]
      paths: {{ write: [{folder}] }}
    timeout: 50s
"""


class Crew(Team):
    """A team with workflows that leave marks, in the order in which they are carried out."""

    def loaded(self, name: str, *, top: str = "", then: str = "true") -> LoadedWorkflow:
        text = FLOW.format(name=name, top=top, then=then, marks=self.marks, folder=self.marks.parent)
        loaded = load_text(text, filename=f"{name}.yaml", actions=catalog)
        self.bench.install(loaded.workflow)
        return loaded

    def done(self) -> list[str]:
        return self.marks.read_text().splitlines() if self.marks.exists() else []

    def states(self) -> dict[str, QueueState]:
        with shared(self.ledger_url) as queue:
            return {each.run_id: each.state for each in queue.list(set(QueueState))}

    def change(self, statement: LiteralString, *parameters: object) -> None:
        with psycopg.connect(self.ledger_url, autocommit=True) as session:
            session.execute(statement, parameters)

    def told(self, *arguments: str) -> Any:
        answer = self.command(*arguments, "--json")
        assert answer.returncode == 0, answer.stderr
        return json.loads(answer.stdout)


@pytest.fixture
def crew(bench: Bench, setup: Setup, tmp_path: Path, children: ForkServer) -> Iterator[Crew]:
    with Crew(bench, setup, tmp_path / "marks", children) as crew:
        yield crew


def test_of_one_workflow_the_smaller_priority_is_first_and_then_the_one_that_came_first(crew: Crew) -> None:
    loaded = crew.loaded("ordered", top="max_runs: 1")
    with shared(crew.ledger_url) as queue:
        for mark, priority in (("c", 100), ("d", 100), ("a", 1), ("e", 500), ("b", 2)):
            put(queue, loaded, {"mark": mark}, priority=priority)
    crew.worker()
    wait_for(lambda: len(crew.done()) == 5, "all to be carried out", 30)
    assert crew.done() == [f"ordered {mark}" for mark in "abcde"]


def test_what_is_delayed_begins_after_what_came_later_and_not_before_its_time(crew: Crew) -> None:
    loaded = crew.loaded("delayed", top="max_runs: 1")
    with shared(crew.ledger_url) as queue:
        late = put(queue, loaded, {"mark": "late"}, delay=15.0)
        put(queue, loaded, {"mark": "soon"})
    crew.worker()
    wait_for(lambda: crew.done() == ["delayed soon"], "the other one", 30)
    wait_for(lambda: crew.states() == {late: QueueState.DELAYED}, "its end", 15)
    [listed] = crew.told("queue", "list", "--state", "delayed")
    assert listed["run_id"] == late
    wait_for(lambda: crew.done() == ["delayed soon", "delayed late"], "the delayed one", 30)


def test_no_more_runs_of_a_workflow_begin_in_a_span_of_time_than_it_says(crew: Crew) -> None:
    loaded = crew.loaded("limited", top="rate_limit: { runs: 2, per: 1h }")
    with shared(crew.ledger_url) as queue:
        for number in range(5):
            put(queue, loaded, {"mark": str(number)})
        put(queue, crew.loaded("other"), {"mark": "x"})
    crew.worker()
    crew.worker()
    wait_for(lambda: "other x" in crew.done() and len(crew.done()) >= 3, "what may begin", 30)
    wait_for(lambda: sorted(crew.states().values()) == [QueueState.WAITING] * 3, "their ends", 30)
    assert sorted(crew.done()) == ["limited 0", "limited 1", "other x"]


def test_nothing_begins_while_it_is_paused_and_everything_afterwards(crew: Crew) -> None:
    one, other = crew.loaded("one", top="max_runs: 1"), crew.loaded("other")
    assert crew.command("queue", "pause", "--workflow", "one", "--reason", "its table is being moved").returncode == 0
    crew.worker()
    with shared(crew.ledger_url) as queue:
        held = put(queue, one)
        put(queue, other, {"mark": "1"})
        wait_for(lambda: crew.done() == ["other 1"], "the other workflow", 30)
        assert crew.command("queue", "pause").returncode == 0
        put(queue, other, {"mark": "2"})
        shown = crew.command("queue", "list").stdout
        assert "no run of `one` begins" in shown
        assert "its table is being moved" in shown
        assert "no run begins" in shown
        assert crew.command("queue", "resume", "--workflow", "one").returncode == 0
        assert crew.command("queue", "resume", "--workflow", "one").returncode == 2
        assert crew.done() == ["other 1"], "all is paused"
        assert crew.states()[held] is not QueueState.RUNNING
        assert crew.command("queue", "resume").returncode == 0
    wait_for(lambda: sorted(crew.done()) == ["one ", "other 1", "other 2"], "all that waited", 30)


def test_a_pause_holds_from_the_moment_at_which_it_was_made(crew: Crew) -> None:
    """Whatever a worker has known until then, and however soon afterwards a run is put in."""
    loaded = crew.loaded("one")
    crew.worker()
    marks = []
    with open_ledger(crew.ledger_url, clock=SystemClock()) as ledger, shared(crew.ledger_url) as queue:
        for number, paused in enumerate(["", "one", "", "one"]):
            ledger.queue.pause(paused, by="somebody", reason="", at=SystemClock().now())
            run_id = put(queue, loaded, {"mark": str(number)})
            time.sleep(0.5)  # the worker has looked several times
            assert crew.done() == marks
            held = ledger.queue.get(run_id)
            assert held is not None
            assert held.tries == 0
            assert ledger.queue.resume(paused)
            marks.append(f"one {number}")
            wait_for(lambda: crew.done() == marks, "the run", 30)


def test_of_several_that_are_to_be_alone_and_are_put_in_at_once_one_gets_through(crew: Crew) -> None:
    loaded = crew.loaded("alone")
    with open_schedules(crew.ledger_url) as schedules:
        schedules.put(ScheduleState(workflow="alone", handled=SystemClock().now()))
    start = threading.Barrier(6)

    def enter(_: int) -> bool:
        with shared(crew.ledger_url) as queue:
            start.wait()
            try:
                put(queue, loaded, alone=["queue"])
            except NotAlone:
                return False
            return True

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(enter, range(6))) == [False] * 5 + [True]


def test_a_run_that_waits_is_taken_out_and_one_that_goes_on_is_not(crew: Crew) -> None:
    loaded = crew.loaded("slow", top="max_runs: 1", then="sleep 30")
    with shared(crew.ledger_url) as queue:
        goes_on, waits = put(queue, loaded, {"mark": "1"}), put(queue, loaded, {"mark": "2"})
    worker = crew.worker()
    wait_for(lambda: crew.done() == ["slow 1"], "the first to go on", 30)
    assert crew.command("queue", "remove", waits).returncode == 0
    refused = crew.command("queue", "remove", goes_on)
    assert refused.returncode == 2
    assert "runs cancel" in refused.stderr
    [seen] = [each for each in crew.told("workers", "list") if each["role"] == "worker"]
    assert (seen["pid"], seen["state"], seen["runs"], seen["max_runs"]) == (worker.pid, "alive", 1, 8)
    [listed] = crew.told("queue", "list")
    assert (listed["run_id"], listed["state"], listed["worker"]) == (goes_on, "running", seen["id"])
    assert crew.command("runs", "cancel", goes_on).returncode == 0
    record = wait_for(lambda: crew.ended(goes_on), "the cancelled run to end", 30)
    assert record.state is RunState.CANCELLED
    wait_for(lambda: crew.states() == {}, "the queue to be empty", 30)
    assert crew.run(waits) is None


def test_a_run_that_is_cancelled_while_it_waits_never_begins(crew: Crew) -> None:
    with shared(crew.ledger_url) as queue:
        run_id = put(queue, crew.loaded("unwanted"))
    assert crew.command("runs", "cancel", run_id).returncode == 0
    crew.worker()
    with shared(crew.ledger_url) as queue:
        put(queue, crew.loaded("wanted"))
    wait_for(lambda: crew.done() == ["wanted "], "the other run", 30)
    wait_for(lambda: crew.states() == {}, "the queue to be empty", 30)


def test_a_run_that_nobody_can_begin_is_dead_and_is_begun_by_a_retry_when_that_is_mended(crew: Crew) -> None:
    loaded = crew.loaded("moved")
    with shared(crew.ledger_url) as queue:
        run_id = put(queue, loaded)
    crew.change("UPDATE workflow_text SET text = text || ' ' WHERE digest = %s", loaded.digest)
    worker = crew.worker()
    wait_for(lambda: crew.states() == {run_id: QueueState.DEAD}, "the run to be given up", 30)
    record = crew.run(run_id)
    assert record is not None
    assert record.state is RunState.FAILED
    assert "is not the one that was recorded" in record.reason
    assert crew.told("queue", "list") == []
    [listed] = crew.told("queue", "list", "--state", "dead")
    assert listed["run_id"] == run_id
    refused = crew.command("queue", "retry", run_id)
    assert refused.returncode == 2
    assert "is not the one that was recorded" in refused.stderr
    crew.change("UPDATE workflow_text SET text = rtrim(text, ' ') WHERE digest = %s", loaded.digest)
    again = crew.told("queue", "retry", run_id)["run"]
    retried = wait_for(lambda: crew.ended(again), "the retry to end", 30)
    assert retried.state is RunState.SUCCEEDED
    assert retried.retry_of == run_id
    assert crew.done() == ["moved "]
    wait_for(lambda: crew.states() == {}, "the queue to be empty", 30)
    assert worker.poll() is None


def test_a_worker_that_ends_gives_back_what_it_has_not_begun_and_another_one_goes_on(crew: Crew) -> None:
    loaded = crew.loaded("short")
    first = crew.start("worker", "--no-listen", "--max-runs", "1")
    with shared(crew.ledger_url) as queue:
        runs = [put(queue, loaded, {"mark": str(number)}) for number in range(6)]
    wait_for(lambda: crew.done(), "the first run", 30)
    first.terminate()
    assert first.wait(40) == 0
    assert QueueState.RUNNING not in crew.states().values()
    crew.worker()
    wait_for(lambda: all(crew.ended(run) for run in runs), "all runs", 30)
    assert sorted(crew.done()) == sorted(f"short {number}" for number in range(6))


def test_a_ledger_that_cannot_be_read_for_a_while_ends_no_run_for_the_queue(crew: Crew, tmp_path: Path) -> None:
    with shared(crew.ledger_url) as queue:
        run_id = put(queue, crew.loaded("patient"))
    crew.change("ALTER TABLE queued_run RENAME TO hidden")
    with (tmp_path / "log").open("wb") as log:
        worker = crew.children.start("worker", "--no-listen", environment=crew.environment(), log=log)
    crew.processes.append(worker)
    wait_for(lambda: "is put back into the queue" in (tmp_path / "log").read_text(), "the worker to meet it", 30)
    crew.change("ALTER TABLE hidden RENAME TO queued_run")
    record = wait_for(lambda: crew.ended(run_id), "the run to end", 40)
    assert record.state is RunState.SUCCEEDED
    wait_for(lambda: crew.in_dbos() == {run_id: "SUCCESS"}, "DBOS to have the end", 30)
    assert crew.done() == ["patient "]


def test_what_dbos_cannot_start_does_not_come_back_for_ever(crew: Crew) -> None:
    with shared(crew.ledger_url) as queue:
        run_id = put(queue, crew.loaded("incomplete", top="max_runs: 1"))
    crew.change("DELETE FROM orchestrator_dbos.workflow_input")
    crew.worker()
    with shared(crew.ledger_url) as queue:
        after = put(queue, crew.loaded("incomplete", top="max_runs: 1"), {"mark": "after"})
    record = wait_for(lambda: crew.ended(after), "what came behind it", 60)
    assert record.state is RunState.SUCCEEDED
    assert crew.run(run_id) is None
    wait_for(lambda: crew.states() == {}, "the queue to be empty", 30)


def test_on_one_machine_with_sqlite_the_queue_says_what_it_needs(crew: Crew, tmp_path: Path) -> None:
    environment = {**crew.environment(), "ORCHESTRATOR_LEDGER_URL": f"sqlite:///{tmp_path}/one.db"}
    for command in (["worker", "--no-listen"], ["queue", "list"], ["queue", "pause"]):
        refused = crew.children.command(*command, environment=environment)
        assert refused.returncode == 2
        assert "needs a ledger in PostgreSQL" in refused.stderr
