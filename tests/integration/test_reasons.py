"""Why a run was started: however it begins and whoever goes on with it, policies and people see the same."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from bench import Bench
from fork_server import ForkServer
from sqlalchemy import create_engine, text
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
from orchestrator.recovery.dead_runs import request_of
from orchestrator.recovery.resumption import resume
from orchestrator.redaction.redactor import Redactor
from orchestrator.runs.runner import Runner
from orchestrator.runs.types import Interruption, RunOutcome, RunRequest
from orchestrator.scheduling.launcher import Launcher
from orchestrator.scheduling.queue import claiming, enqueue
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


def recorded(bench: Bench, run_id: str) -> tuple[list[str], list[str]]:
    """The reason as the run's history has it: of its beginning, and of each question to the policy."""
    with open_ledger(bench.config().ledger_url, clock=SystemClock()) as ledger:
        assert ledger.verify(run_id) is None
        started = ledger.events(run_id, kind=RunStarted.kind)
        asked = ledger.events(run_id, kind=Decided.kind)
    return [str(each.data["reason"]) for each in started], [each.data["input"]["run"]["reason"] for each in asked]  # type: ignore[index,call-overload]


class TestQueue:
    def queue(self, bench: Bench, wanted: RunRequest) -> None:
        clock = SystemClock()
        with open_ledger(bench.config().ledger_url, clock=clock) as ledger:
            assert enqueue(ledger.queue, wanted, clock)

    def work(self, bench: Bench, run_id: str, rule: str = DEMANDING) -> None:
        """One look of a worker into the queue, and the run that it finds there."""

        async def go() -> None:
            async with open_services(bench.config(policy=policy(rule)), redactor=Redactor()) as services:
                launcher = Launcher(max_runs=1, redactor=Redactor())
                await claiming(services, launcher, {}, max_runs=1)()
                (launched,) = launcher.active
                assert launched.run_id == run_id
                await launched.task

        asyncio.run(go())

    def test_who_queues_a_run_says_why(self, bench: Bench) -> None:
        wanted = request(bench, trigger="queue")
        self.queue(bench, wanted)
        with open_ledger(bench.config().ledger_url, clock=SystemClock()) as ledger:
            assert [each.reason for each in ledger.queue.all()] == [WORDS]
        self.work(bench, wanted.run_id)
        assert recorded(bench, wanted.run_id) == ([WORDS], [WORDS])
        with open_ledger(bench.config().ledger_url, clock=SystemClock()) as ledger:
            record = ledger.run(wanted.run_id)
            assert record is not None
            assert record.state is RunState.SUCCEEDED

    def test_one_that_is_claimed_still_has_it(self, bench: Bench) -> None:
        self.queue(bench, wanted := request(bench, trigger="queue"))
        with open_ledger(bench.config().ledger_url, clock=SystemClock()) as ledger:
            claimed = ledger.queue.claim("worker", {})
            assert claimed is not None
            assert (claimed.run_id, claimed.reason) == (wanted.run_id, WORDS)
            ledger.queue.release("worker")
            again = ledger.queue.claim("other", {})
            assert again is not None
            assert again.reason == WORDS

    def test_a_run_that_was_queued_before_there_were_reasons_has_none(self, bench: Bench) -> None:
        """Its row is as an earlier version wrote it, and the tables are as that version made them."""
        wanted = request(bench, trigger="queue")
        self.queue(bench, replace(wanted, reason=""))
        engine = create_engine(bench.config().ledger_url)
        with engine.begin() as connection:
            columns = [row[1] for row in connection.execute(text("PRAGMA table_info(queued_run)"))]
            assert "reason" in columns
            for column in ("reason", "directory"):
                connection.execute(text(f"ALTER TABLE queued_run DROP COLUMN {column}"))
            for index in (
                "run_by_task",
                "run_of_task_by_time",
                "task_by_agent",
                "task_by_state",
                "run_by_time",
                "run_by_state",
                "run_owner_wanted",
                "run_by_trigger",
                "run_by_agent",
                "run_by_retry_of",
            ):
                connection.execute(text(f"DROP INDEX {index}"))
            connection.execute(text("ALTER TABLE run_owner DROP COLUMN renewal"))
            connection.execute(
                text("CREATE INDEX run_owner_to_cancel ON run_owner (runner_id) WHERE cancel IS NOT NULL")
            )
            for name in ("task", "deadline", "idle", "retry_of"):
                connection.execute(text(f"ALTER TABLE run DROP COLUMN {name}"))
            connection.execute(text("CREATE INDEX run_by_time ON run (started_at, run_id)"))
            connection.execute(text("CREATE INDEX run_by_state ON run (state, started_at, run_id)"))
            for table in ("approval_vote", "approval", "request_seen", "agent_block", "gate", "lease_waiter"):
                connection.execute(text(f"DROP TABLE {table}"))
            connection.execute(text("UPDATE alembic_version SET version_num = 'r0008'"))
        engine.dispose()
        with open_ledger(bench.config().ledger_url, clock=SystemClock()) as ledger:
            assert [(each.run_id, each.reason) for each in ledger.queue.all()] == [(wanted.run_id, "")]
        self.work(bench, wanted.run_id)
        assert recorded(bench, wanted.run_id) == ([""], [""])
        with open_ledger(bench.config().ledger_url, clock=SystemClock()) as ledger:
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
        assert recorded(bench, run.run_id) == ([WORDS], [WORDS])
        assert recorded(bench, silent.run_id) == ([""], [""])
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
        started, asked = recorded(bench, wanted.run_id)
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
