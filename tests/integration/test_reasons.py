"""Why a run was started: however it begins and whoever goes on with it, policies and people see the same."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from alembic import command
from bench import Bench, Setup
from fork_server import ForkServer
from queued import put_request, shared, worker_in_process
from test_serve import served_on
from waiting import wait_for

from orchestrator.actions.catalog import catalog
from orchestrator.assembly import open_services
from orchestrator.clock import SystemClock
from orchestrator.errors import ExitCode
from orchestrator.ledger.events import Decided, RunStarted
from orchestrator.ledger.ids import new_run_id
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.states import RunState, StepState
from orchestrator.policy.engines.rego.engine import PolicySource, RegoEngine
from orchestrator.queue.tables import QueueState
from orchestrator.recovery.dead_runs import request_of
from orchestrator.recovery.resumption import resume
from orchestrator.redaction.redactor import Redactor
from orchestrator.runs.runner import Runner
from orchestrator.runs.types import Interruption, RunOutcome, RunRequest
from orchestrator.scheduling.launcher import Launcher
from orchestrator.workflow.inputs import bind_inputs
from orchestrator.workflow.loader import load_text

WORDS = "ticket 4711: „Łódź“ ☂"
TEXT = """
version: 1
name: reasoned
agent: tester
steps:
  work:
    action: postgres.query
    grants: { db: { kind: database, connection: support, role: feedback-read } }
    with: { sql: SELECT 1 AS one }
    timeout: 20s
"""
DEMANDING = 'decision := {"allow": true, "obligations": {"reason_required": true}}'
WAITING = 'decision := {"allow": true, "obligations": {"approval": {"approvers": ["vault:userpass-alice"]}}}'


def policy(rule: str = DEMANDING) -> RegoEngine:
    return RegoEngine.from_sources([PolicySource("test.rego", f"package orchestrator\n{rule}")])


def request(bench: Bench, reason: str = WORDS, **more: Any) -> RunRequest:
    loaded = load_text(TEXT, filename="test.yaml", actions=catalog)
    bench.install(loaded.workflow)
    inputs = bind_inputs(loaded.workflow, {})
    return RunRequest(run_id=new_run_id(), loaded=loaded, inputs=inputs, reason=reason, **more)


def recorded(ledger_url: str, run_id: str) -> tuple[list[str], list[str]]:
    """The reason as the run's history has it: of its beginning, and of each question to the policy."""
    with open_ledger(ledger_url, clock=SystemClock()) as ledger:
        assert ledger.verify(run_id) is None
        started = ledger.events(run_id, kind=RunStarted.kind)
        asked = ledger.events(run_id, kind=Decided.kind)
    return [str(each.data["reason"]) for each in started], [each.data["input"]["run"]["reason"] for each in asked]  # type: ignore[index,call-overload]


def work(bench: Bench, ledger_url: str, run_id: str, rule: str = DEMANDING) -> None:
    """A worker, and the run that it is handed."""

    async def go() -> None:
        launcher = Launcher(max_runs=1, redactor=Redactor())
        async with (
            open_services(
                bench.config(policy=policy(rule), ledger_url=ledger_url),
                redactor=Redactor(),
                observer=lambda run, time, event: launcher.observe(run, event),
            ) as services,
            worker_in_process(services, launcher, ledger_url),
        ):

            def over() -> bool:
                record = services.reader.run(run_id)
                return record is not None and record.state is not RunState.RUNNING

            await asyncio.to_thread(wait_for, over, "the run to end")

    asyncio.run(go())


@pytest.mark.parametrize("setup", ["queue"], indirect=True)
class TestQueue:
    def queue(self, setup: Setup, wanted: RunRequest) -> None:
        with shared(setup.ledger_url) as queue:
            put_request(queue, wanted)

    def test_who_queues_a_run_says_why(self, bench: Bench, setup: Setup) -> None:
        wanted = request(bench, trigger="queue")
        self.queue(setup, wanted)
        with shared(setup.ledger_url) as queue:
            assert [each.reason for each in queue.list(set(QueueState))] == [WORDS]
        work(bench, setup.ledger_url, wanted.run_id)
        assert recorded(setup.ledger_url, wanted.run_id) == ([WORDS], [WORDS])
        with open_ledger(setup.ledger_url, clock=SystemClock()) as ledger:
            record = ledger.run(wanted.run_id)
            assert record is not None
            assert record.state is RunState.SUCCEEDED

    def test_one_that_somebody_takes_in_hand_still_has_it(self, bench: Bench, setup: Setup) -> None:
        self.queue(setup, wanted := request(bench, trigger="queue"))
        with open_ledger(setup.ledger_url, clock=SystemClock()) as ledger:
            for _ in range(2):
                taken = ledger.queue.tried(wanted.run_id)
                assert taken is not None
                queued, paused = taken
                assert (queued.run_id, queued.reason, queued.tries, paused) == (wanted.run_id, WORDS, 1, None)
                ledger.queue.untried(wanted.run_id)


def test_a_run_that_was_queued_before_there_were_reasons_has_none(
    bench: Bench, new_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its row is as an earlier version wrote it, in tables as that version made them."""
    wanted = request(bench, trigger="queue")
    upgrade = command.upgrade
    with monkeypatch.context() as earlier:
        earlier.setattr(command, "upgrade", lambda config, revision: upgrade(config, "r0008"))
        open_ledger(new_database, clock=SystemClock()).close()
    with psycopg.connect(new_database) as session:
        loaded = wanted.loaded
        session.execute("INSERT INTO workflow_text (digest, text) VALUES (%s, %s)", [loaded.digest, loaded.text])
        session.execute(
            "INSERT INTO queued_run (run_id, workflow, digest, inputs, trigger, connections, max_runs, queued_at) "
            "VALUES (%s, 'reasoned', %s, '{}', 'queue', '[\"support\"]', 0, '2026-01-02T03:04:05.000000Z')",
            [wanted.run_id, loaded.digest],
        )
    work(bench, new_database, wanted.run_id)
    assert recorded(new_database, wanted.run_id) == ([""], [""])
    with open_ledger(new_database, clock=SystemClock()) as ledger:
        (step,) = ledger.steps(wanted.run_id)
        assert step.state is StepState.REFUSED


def test_a_schedule_says_why(bench: Bench, children: ForkServer) -> None:
    with served_on(bench, children) as served:
        folder = bench.directory / "policies"
        folder.mkdir()
        (folder / "p.rego").write_text(f"package orchestrator\n{DEMANDING}")
        served.environment |= {"ORCHESTRATOR_POLICY": "rego", "ORCHESTRATOR_POLICY_PATH": str(folder)}
        served.put("reasoned", f"{{ every: 1s, reason: '{WORDS}' }}")
        served.put("silent", "{ every: 1s }")
        served.start()
        (run, *_) = wait_for(lambda: served.runs("reasoned", RunState.SUCCEEDED), "a run with a reason")
        (silent, *_) = wait_for(lambda: served.runs("silent", RunState.REFUSED), "a run without one")
        assert recorded(bench.config().ledger_url, run.run_id) == ([WORDS], [WORDS])
        assert recorded(bench.config().ledger_url, silent.run_id) == ([""], [""])
        assert "wants to know why" in silent.reason
        assert served.stop() == 0


class TestResumption:
    def start(self, bench: Bench, wanted: RunRequest, rule: str, **changes: Any) -> RunOutcome:
        async def go() -> RunOutcome:
            config = bench.config(policy=policy(rule), **changes)
            async with open_services(config, redactor=Redactor()) as services:
                return await Runner(services).run(wanted)

        return asyncio.run(go())

    def test_who_takes_a_run_up_again_asks_with_the_same_reason(self, bench: Bench) -> None:
        wanted = request(bench)
        left = self.start(bench, wanted, WAITING, parks=True)
        assert left.exit_code is ExitCode.WAITING

        async def again() -> RunOutcome:
            async with open_services(bench.config(policy=policy()), redactor=Redactor()) as services:
                record = services.reader.run(wanted.run_id)
                assert record is not None
                assert request_of(services, record).reason == WORDS
                return await resume(services, wanted.run_id, {}, Interruption())

        assert asyncio.run(again()).exit_code is ExitCode.DONE
        started, asked = recorded(bench.config().ledger_url, wanted.run_id)
        assert started == [WORDS]
        assert len(asked) == 2
        assert set(asked) == {WORDS}

    def test_of_an_event_without_one_there_is_none(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        """As an earlier version recorded that a run began."""
        wanted = request(bench)
        self.start(bench, wanted, WAITING, parks=True)

        async def again() -> RunRequest:
            async with open_services(bench.config(policy=policy()), redactor=Redactor()) as services:
                record = services.reader.run(wanted.run_id)
                assert record is not None
                real = type(services.reader).events

                def without(reader: Any, run_id: str, **how: Any) -> Any:
                    found = real(reader, run_id, **how)
                    return [
                        replace(each, data={key: value for key, value in each.data.items() if key != "reason"})
                        for each in found
                    ]

                monkeypatch.setattr(type(services.reader), "events", without)
                return request_of(services, record)

        assert asyncio.run(again()).reason == ""
