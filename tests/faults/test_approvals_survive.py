"""Waiting for people survives the processes that wait: parked, restarted, killed; and it holds nobody's place."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from bench import Bench, Setup
from dbos import DBOSClient, WorkflowSerializationFormat
from fork_server import Forked, ForkServer
from queued import shared
from waiting import wait_for

from orchestrator.actions.catalog import catalog
from orchestrator.assembly import open_services
from orchestrator.clock import SystemClock
from orchestrator.errors import ExitCode
from orchestrator.ledger.coordination.approvals import ApprovalRecord
from orchestrator.ledger.events import ApprovalRequested, ApprovalVoted, LeaseRequested, RunResumed
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.states import ApprovalState, RunState, StepState
from orchestrator.ledger.types import RunRecord
from orchestrator.queue.names import SCHEMA, WORKFLOW
from orchestrator.queue.tables import QueueState
from orchestrator.recovery.waiting import decided_runs
from orchestrator.redaction.redactor import Redactor
from orchestrator.runs.runner import Runner
from orchestrator.workflow.loader import load_text

FLOW = """
version: 1
name: NAME
agent: tester
SCHEDULE
steps:
  before:
    action: postgres.query
    grants: { db: { kind: database, connection: support, role: feedback-read } }
    with: { sql: SELECT 1 AS one }
  work:
    action: postgres.query
    needs: [before]
    grants: { db: { kind: database, connection: support, role: feedback-read } }
    with: { sql: SELECT 2 AS two }
  after:
    action: postgres.query
    needs: [work]
    grants: { db: { kind: database, connection: support, role: feedback-read } }
    with: { sql: SELECT 3 AS three }
"""

POLICY = """
package orchestrator
import rego.v1
default decision := {"allow": true}
decision := {"allow": true, "obligations": {"approval": DEMAND}} if input.step.id == "work"
"""


@dataclass
class Office:
    """Processes of the orchestrator under a policy that wants approval, and somebody who may give it."""

    bench: Bench
    ledger_url: str
    children: ForkServer
    processes: list[Forked] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.policies = self.bench.directory / "policies"
        self.policies.mkdir()
        self.demand()
        vault = self.bench.vault
        vault.write_data("auth/userpass/users/alice", data={"password": "x" * 12, "policies": "alices"})
        answer = vault.write_data("auth/userpass/login/alice", data={"password": "x" * 12})
        self.token = self.bench.directory / "alices-token"
        self.token.write_text(answer["auth"]["client_token"])

    def demand(self, **more: Any) -> None:
        demand = json.dumps({"approvers": ["vault:userpass-alice"], **more})
        (self.policies / "p.rego").write_text(POLICY.replace("DEMAND", demand))

    def environment(self) -> dict[str, str]:
        return {
            **self.bench.environment(),
            "ORCHESTRATOR_LEDGER_URL": self.ledger_url,
            "ORCHESTRATOR_POLICY_PATH": str(self.policies),
            "ORCHESTRATOR_DEAD_AFTER": "4",
        }

    def flow(self, name: str, schedule: str = "", folder: Path | None = None) -> Path:
        text = FLOW.replace("NAME", name).replace("SCHEDULE", schedule)
        self.bench.install(load_text(text, filename="flow.yaml", actions=catalog).workflow)
        path = (folder or self.bench.directory) / f"{name}.yaml"
        path.write_text(text)
        return path

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.children.command(*words, environment=self.environment())

    def start(self, *words: str) -> Forked:
        process = self.children.start(*words, environment=self.environment())
        self.processes.append(process)
        return process

    def says(self, word: str, approval_id: str) -> dict[str, Any]:
        answer = self.command("approvals", word, approval_id, "--token-file", str(self.token), "--json")
        assert answer.returncode == 0, answer.stderr
        found: dict[str, Any] = json.loads(answer.stdout)
        return found

    def requests(self, state: ApprovalState | None = None) -> list[ApprovalRecord]:
        with open_ledger(self.ledger_url, clock=SystemClock()) as ledger:
            return list(ledger.approvals.all(state=state))

    def run(self, run_id: str) -> RunRecord:
        with open_ledger(self.ledger_url, clock=SystemClock()) as ledger:
            record = ledger.run(run_id)
            assert record is not None
            assert ledger.verify(run_id) is None
            assert ledger.examine(run_id).whole
            return record

    def states(self, run_id: str) -> dict[str, StepState]:
        with open_ledger(self.ledger_url, clock=SystemClock()) as ledger:
            return {step.step: step.state for step in ledger.steps(run_id)}

    def events(self, run_id: str, kind: str) -> list[Any]:
        with open_ledger(self.ledger_url, clock=SystemClock()) as ledger:
            return list(ledger.events(run_id, kind=kind))

    def close(self) -> None:
        self.token.unlink()  # it lies where nothing of ours may leave one
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes:
            process.communicate(timeout=60)


@pytest.fixture
def office(bench: Bench, setup: Setup, children: ForkServer) -> Iterator[Office]:
    bench.vault.sys.enable_auth_method("userpass")
    try:
        with closing(Office(bench, setup.ledger_url, children)) as made:
            yield made
    finally:
        bench.vault.sys.disable_auth_method("userpass")


one_ledger = pytest.mark.parametrize("setup", ["sqlite"], indirect=True)
in_queue = pytest.mark.parametrize("setup", ["queue"], indirect=True)


DONE = {"before": StepState.SUCCEEDED, "work": StepState.SUCCEEDED, "after": StepState.SUCCEEDED}


@one_ledger
def test_a_run_that_does_not_wait_ends_with_its_own_code_and_is_resumed(office: Office) -> None:
    path = office.flow("parked")
    answer = office.command("run", str(path), "--run-id", "parked", "--no-wait", "--json")
    assert answer.returncode == ExitCode.WAITING, answer.stderr
    assert office.run("parked").state is RunState.WAITING
    assert office.states("parked") == {"before": StepState.SUCCEEDED, "work": StepState.WAITING}
    office.bench.assert_nothing_left()
    again = office.command("runs", "resume", "parked", "--no-wait")
    assert again.returncode == ExitCode.WAITING, again.stderr
    (asked,) = office.requests()
    assert office.says("approve", asked.approval_id)["state"] == "approved"
    final = office.command("runs", "resume", "parked")
    assert final.returncode == 0, final.stderr
    assert office.states("parked") == DONE
    assert len(office.events("parked", ApprovalRequested.kind)) == 1
    assert len(office.events("parked", ApprovalVoted.kind)) == 1
    told = office.command("run", str(path), "--run-id", "parked")
    assert told.returncode == 0
    office.bench.assert_nothing_left()


@one_ledger
def test_kill_9_while_it_waits_loses_nothing(office: Office) -> None:
    path = office.flow("killed")
    process = office.start("run", str(path), "--run-id", "killed")
    (asked,) = wait_for(lambda: office.requests(ApprovalState.OPEN), "the request")
    wait_for(lambda: office.events("killed", ApprovalRequested.kind), "its record")
    process.kill()
    process.wait(30)
    assert office.bench.logins_of_steps() == []
    office.says("approve", asked.approval_id)
    answer = office.command("run", str(path), "--run-id", "killed")
    assert answer.returncode == 0, answer.stderr
    assert office.states("killed") == DONE
    assert [each.approval_id for each in office.requests()] == [asked.approval_id]
    office.bench.assert_nothing_left()


@one_ledger
def test_a_signal_ends_the_waiting(office: Office) -> None:
    path = office.flow("interrupted")
    process = office.start("run", str(path), "--run-id", "interrupted")
    wait_for(lambda: office.events("interrupted", ApprovalRequested.kind), "the request")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == ExitCode.INTERRUPTED
    assert office.run("interrupted").state is RunState.CANCELLED
    assert office.states("interrupted")["work"] is StepState.CANCELLED
    assert [each.state for each in office.requests()] == [ApprovalState.WITHDRAWN]
    office.bench.assert_nothing_left()


@in_queue
def test_a_service_has_its_place_free_while_a_run_waits_and_goes_on_after_a_restart(office: Office) -> None:
    folder = office.bench.directory / "served"
    folder.mkdir()
    office.flow("served", "schedule: { every: 24h, catch_up: none }", folder)
    service = office.start("serve", str(folder), "--no-listen", "--max-runs", "1")
    wait_for(lambda: office.command("schedules", "trigger", "served").returncode == 0, "the service")
    (asked,) = wait_for(lambda: office.requests(ApprovalState.OPEN), "the request")
    wait_for(lambda: office.run(asked.run_id).state is RunState.WAITING, "the run that waits")
    path = office.flow("beside")
    queued = office.command("queue", "add", str(path), "--run-id", "beside")
    assert queued.returncode == 0
    worker = office.start("worker", "--no-listen", "--max-runs", "1")
    wait_for(lambda: len(office.requests(ApprovalState.OPEN)) == 2, "the run of the queue")
    wait_for(lambda: office.run("beside").state is RunState.WAITING, "the run of the queue that waits")
    office.bench.assert_nothing_left()
    for process in (service, worker):
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    for each in office.requests(ApprovalState.OPEN):
        office.says("approve", each.approval_id)
    office.start("serve", str(folder), "--no-listen", "--max-runs", "1")
    office.start("worker", "--no-listen", "--max-runs", "1")
    for run_id in (asked.run_id, "beside"):
        wait_for(lambda run_id=run_id: office.run(run_id).state is RunState.SUCCEEDED, f"the end of {run_id}")
        assert office.states(run_id) == DONE
    wait_for(lambda: json.loads(office.command("queue", "list", "--json").stdout) == [], "the queue to be empty")
    office.bench.assert_nothing_left()


@in_queue
@pytest.mark.parametrize(("word", "state"), [("deny", RunState.REFUSED), (None, RunState.REFUSED)])
def test_a_worker_ends_what_is_refused_or_out_of_time(office: Office, word: str | None, state: RunState) -> None:
    if word is None:
        office.demand(expires_in=3)
    assert office.command("queue", "add", str(office.flow("ended")), "--run-id", "ended").returncode == 0
    office.start("worker", "--no-listen")
    wait_for(lambda: office.requests(), "the request")
    if word:
        office.says(word, office.requests()[0].approval_id)
    wait_for(lambda: office.run("ended").state is state, "the end")
    assert office.states("ended")["after"] is StepState.SKIPPED
    assert all(event.data["step"] != "work" for event in office.events("ended", LeaseRequested.kind))
    office.bench.assert_nothing_left()


@one_ledger
def test_a_run_that_waits_can_be_cancelled(office: Office) -> None:
    path = office.flow("cancelled")
    assert office.command("run", str(path), "--run-id", "cancelled", "--no-wait").returncode == ExitCode.WAITING
    answer = office.command("runs", "cancel", "cancelled", "--reason", "not needed any more")
    assert answer.returncode == 0, answer.stderr
    record = office.run("cancelled")
    assert (record.state, record.reason) == (RunState.CANCELLED, "not needed any more")
    assert office.states("cancelled") == {
        "before": StepState.SUCCEEDED,
        "work": StepState.CANCELLED,
        "after": StepState.CANCELLED,
    }
    assert [each.state for each in office.requests()] == [ApprovalState.WITHDRAWN]
    assert office.command("runs", "resume", "cancelled").returncode != 0
    late = office.command("approvals", "approve", office.requests()[0].approval_id, "--token-file", str(office.token))
    assert late.returncode == 2
    assert "withdrawn" in late.stderr


@one_ledger
def test_an_approval_that_is_too_old_is_asked_for_again(office: Office) -> None:
    office.demand(valid_for=2)
    path = office.flow("stale")
    assert office.command("run", str(path), "--run-id", "stale", "--no-wait").returncode == ExitCode.WAITING
    office.says("approve", office.requests()[0].approval_id)
    time.sleep(3)
    answer = office.command("run", str(path), "--run-id", "stale", "--no-wait")
    assert answer.returncode == ExitCode.WAITING, answer.stderr
    assert office.states("stale")["work"] is StepState.WAITING
    newest, former = office.requests()
    assert (newest.state, former.state) == (ApprovalState.OPEN, ApprovalState.APPROVED)
    assert len(office.events("stale", ApprovalRequested.kind)) == 2
    office.bench.assert_nothing_left()


@one_ledger
def test_of_two_processes_that_find_it_decided_one_goes_on(office: Office) -> None:
    folder = office.bench.directory / "served"
    folder.mkdir()
    office.flow("raced", "schedule: { every: 24h, catch_up: none }", folder)
    service = office.start("serve", str(folder), "--no-listen")
    wait_for(lambda: office.command("schedules", "trigger", "raced").returncode == 0, "the service")
    (asked,) = wait_for(lambda: office.requests(ApprovalState.OPEN), "the request")
    wait_for(lambda: office.run(asked.run_id).state is RunState.WAITING, "the run that waits")
    service.send_signal(signal.SIGTERM)
    service.wait(60)
    office.says("approve", asked.approval_id)
    config = office.bench.config(ledger_url=office.ledger_url, parks=True)

    async def both() -> None:
        async with (
            open_services(config, redactor=Redactor()) as one,
            open_services(config, redactor=Redactor()) as other,
        ):
            found = await asyncio.gather(decided_runs(one), decided_runs(other))
            assert sorted(len(each) for each in found) == [0, 1]
            for services, taken in zip((one, other), found, strict=True):
                for each in taken:
                    outcome = await Runner(services).resume(each)
                    assert outcome.state is RunState.SUCCEEDED

    asyncio.run(both())
    assert office.states(asked.run_id) == DONE


@in_queue
def test_of_two_workers_that_find_it_decided_one_goes_on(office: Office) -> None:
    assert office.command("queue", "add", str(office.flow("raced")), "--run-id", "raced").returncode == 0
    for _ in range(2):
        office.start("worker", "--no-listen")
    (asked,) = wait_for(lambda: office.requests(ApprovalState.OPEN), "the request")
    wait_for(lambda: office.run("raced").state is RunState.WAITING, "the run that waits")
    office.says("approve", asked.approval_id)
    wait_for(lambda: office.run("raced").state is RunState.SUCCEEDED, "the end")
    assert office.states("raced") == DONE
    assert len(office.events("raced", RunResumed.kind)) == 1
    wait_for(lambda: json.loads(office.command("queue", "list", "--json").stdout) == [], "the queue to be empty")
    office.bench.assert_nothing_left()


@contextmanager
def dbos(office: Office) -> Iterator[DBOSClient]:
    client = DBOSClient(system_database_url=office.ledger_url, dbos_system_schema=SCHEMA)
    try:
        yield client
    finally:
        client.destroy()


@in_queue
def test_an_entry_in_the_queue_of_a_commands_run_that_is_approved_does_not_let_a_worker_go_on_with_it(
    office: Office,
) -> None:
    assert (
        office.command("run", str(office.flow("parked")), "--run-id", "parked", "--no-wait").returncode
        == ExitCode.WAITING
    )
    office.says("approve", office.requests()[0].approval_id)
    with shared(office.ledger_url) as queue:
        queue.prepare()
    with dbos(office) as client:
        handle: Any = client.enqueue(
            {
                "workflow_name": WORKFLOW,
                "queue_name": "runs",
                "queue_partition_key": "parked",
                "workflow_id": "parked",
                "serialization_type": WorkflowSerializationFormat.PORTABLE,
            }
        )
        office.start("worker", "--no-listen")
        wait_for(lambda: handle.get_status().status == "ERROR", "DBOS to have no run of the queue", 40)
    assert office.run("parked").state is RunState.WAITING
    assert office.events("parked", RunResumed.kind) == []
    assert office.command("runs", "resume", "parked").returncode == 0


@in_queue
def test_a_run_that_waits_is_looked_at_where_it_is_resumed_in_dbos_and_ends_where_it_is_cancelled_there(
    office: Office,
) -> None:
    assert office.command("queue", "add", str(office.flow("asked")), "--run-id", "asked").returncode == 0
    worker = office.start("worker", "--no-listen")
    wait_for(office.requests, "the request")
    with shared(office.ledger_url) as queue:
        wait_for(lambda: queue.counts()[QueueState.DELAYED] == 1, "the run that waits")
        with dbos(office) as client:
            [before] = queue.list({QueueState.APPROVAL})
            client.resume_workflow("asked")

            def looked_at() -> bool:
                found = queue.list({QueueState.APPROVAL})
                return bool(found) and found[0].until != before.until

            wait_for(looked_at, "a worker to look at it", 40)
            assert office.run("asked").state is RunState.WAITING
            assert office.events("asked", RunResumed.kind) == []
            client.cancel_workflow("asked")
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(60) == 0
        office.start("worker", "--no-listen")  # which looks at once what is over
        wait_for(lambda: office.run("asked").state is RunState.CANCELLED, "its end", 40)
        wait_for(lambda: not queue.requests.holds("asked"), "it to be taken out", 40)
    assert [each.state for each in office.requests()] == [ApprovalState.WITHDRAWN]
    assert office.run("asked").reason == "it was cancelled in DBOS"
