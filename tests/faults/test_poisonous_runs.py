"""A run that ends every process which takes it: after a few it is failed, and whoever is left lives and works on."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bench import Bench, Setup
from fork_server import ForkServer
from queued import put_request, queued, worker_in_process
from test_takeover import Team, events
from waiting import wait_for

from orchestrator.actions.catalog import catalog
from orchestrator.assembly import open_services
from orchestrator.ledger.lease import FINAL
from orchestrator.ledger.states import RunState
from orchestrator.ledger.types import LeaseFilter, RunRecord
from orchestrator.queue.shared import SharedQueue
from orchestrator.queue.tables import QueueState
from orchestrator.redaction.redactor import Redactor
from orchestrator.runs.types import RunRequest, Services
from orchestrator.scheduling.launcher import Launcher
from orchestrator.workflow.loader import digest_of, load_text

in_queue = pytest.mark.parametrize("setup", ["queue"], indirect=True)
one_ledger = pytest.mark.parametrize("setup", ["sqlite"], indirect=True)

POISON = """
import os, signal
from orchestrator.workflow import loader
of_old = loader.parse
def parse(text, filename):
    if "name: poison" in text:
        os.kill(os.getpid(), signal.SIGKILL)
    return of_old(text, filename)
loader.parse = parse
"""
"""Reading the workflow ends the process, as an overflow of a native stack does."""


class Victims(Team):
    """Workers that die of one workflow when they read it."""

    limit = 1

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "ORCHESTRATOR_MAX_TAKEOVERS": str(self.limit)}

    def poisoned(self) -> subprocess.Popen[str]:
        program = POISON + "\nfrom orchestrator.cli.main import main\nraise SystemExit(main())"
        process = subprocess.Popen(
            [sys.executable, "-c", program, "worker", "--no-listen"],
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.processes.append(process)
        return process


@pytest.fixture
def team(bench: Bench, setup: Setup, tmp_path: Path, children: ForkServer) -> Iterator[Victims]:
    with Victims(bench, setup, tmp_path / "marks", children) as team:
        yield team


@in_queue
def test_a_queued_run_that_ends_who_reads_it_is_failed_by_the_next_one_without_being_read(team: Victims) -> None:
    run_id = queued(team.ledger_url, team.flow("poison"))
    for _ in range(2):
        assert team.poisoned().wait(60) == -9
    behind = queued(team.ledger_url, team.flow("other", sql="SELECT 1"))
    last = team.poisoned()
    record = wait_for(lambda: team.ended(run_id), "the run to end")
    assert (record.state, record.workflow) == (RunState.FAILED, "poison")
    assert "2 workers died or failed before they could begin it" in record.reason
    assert wait_for(lambda: team.ended(behind), "the run behind it").state is RunState.SUCCEEDED
    assert last.poll() is None
    assert "work" not in team.marks.read_text(), "of the other one"


@in_queue
def test_a_running_run_that_ends_who_goes_on_with_it_is_failed_once_its_leases_are_closed(team: Victims) -> None:
    run_id = queued(team.ledger_url, team.flow("poison"))
    first = team.worker()
    wait_for(team.at_work, "the step to hold its login")
    [login] = team.bench.logins_of_steps()
    first.kill()
    first.wait()
    assert team.poisoned().wait(60) == -9
    last = team.poisoned()
    record = wait_for(lambda: team.ended(run_id), "the run to end")
    assert record.state is RunState.FAILED
    assert "1 before it that went on with this run" in record.reason
    assert login not in team.bench.logins_of_steps()
    assert {lease.state for lease in team.leases(run_id)} <= FINAL
    behind = queued(team.ledger_url, team.flow("other", sql="SELECT 1"))
    assert wait_for(lambda: team.ended(behind), "another run").state is RunState.SUCCEEDED
    assert last.poll() is None
    shown = team.command("runs", "show", run_id)
    assert "went on with this run" in shown.stdout


@in_queue
def test_machines_that_die_cost_a_run_nothing_until_there_were_too_many(team: Victims) -> None:
    run_id = queued(team.ledger_url, team.flow())
    victim = team.worker()
    for _ in range(team.limit + 1):
        wait_for(team.at_work, "the step to hold its login")
        victim.kill()
        victim.wait()
        assert (record := team.run(run_id)) is not None
        assert record.state is RunState.RUNNING
        team.marks.write_text("first\n")  # so that the step takes its time again
        victim = team.worker()
    record = wait_for(lambda: team.ended(run_id), "the run to end")
    assert record.state is RunState.FAILED
    taken_over = [e.data["goes_on"] for e in events(team, run_id) if e.kind == "run.taken_over"]
    assert taken_over.count(True) == 2, "who only closes what is open, and leaves it to the queue, does not count"
    assert team.command("leases", "sweep").returncode == 0
    assert {lease.state for lease in team.leases(run_id)} <= FINAL


@one_ledger
def test_who_only_closes_what_is_open_is_not_counted_and_a_person_who_resumes_begins_anew(team: Victims) -> None:
    path = team.flow()
    command = ["run", str(path), "--run-id", "ours"]
    for _ in range(team.limit + 2):
        team.marks.write_text("first\n")
        victim = team.start(*command)
        wait_for(team.at_work, "the step to hold its login")
        victim.kill()
        victim.wait()
        assert team.command("leases", "sweep").returncode == 0  # interrupts it
        command = ["runs", "resume", "ours"]
    assert team.command(*command).returncode == 0
    assert team.ended("ours").state is RunState.SUCCEEDED  # type: ignore[union-attr]


UNKNOWN = """
version: 1
name: {name}
agent: tester
steps:
  only: {{ action: {action}, with: {{ command: [/bin/true] }} }}
"""


async def until(condition: Callable[[], Any], what: str) -> Any:
    return await asyncio.to_thread(wait_for, condition, what, 60)


@asynccontextmanager
async def opened(bench: Bench, setup: Setup, **changes: Any) -> AsyncIterator[tuple[Services, Launcher]]:
    launcher = Launcher(max_runs=4, redactor=Redactor())
    async with open_services(
        bench.config(ledger_url=setup.ledger_url, **changes),
        redactor=Redactor(),
        observer=lambda run, time, event: launcher.observe(run, event),
    ) as services:
        yield services, launcher


@in_queue
class TestWhatCannotBeLoaded:
    """An action that is only installed where the run was enqueued, or a text that does not load any more."""

    def enqueued(self, queue: SharedQueue, run_id: str, action: str) -> None:
        loaded = load_text(UNKNOWN.format(name="w", action="exec"), filename="w.yaml", actions=catalog)
        text = UNKNOWN.format(name="w", action=action)
        given = replace(loaded, text=text, digest=digest_of(text))
        put_request(queue, RunRequest(run_id=run_id, loaded=given, inputs={}, trigger="queue"))

    def states(self, queue: SharedQueue) -> dict[str, QueueState]:
        return {each.run_id: each.state for each in queue.list(set(QueueState))}

    def tries(self, services: Services, run_id: str) -> int:
        queued = services.queue.get(run_id)
        return 0 if queued is None else queued.tries

    async def ended(self, services: Services, run_id: str) -> RunRecord:
        def found() -> RunRecord | None:
            run = services.reader.run(run_id)
            return None if run is None or run.state is RunState.RUNNING else run

        record: RunRecord = await until(found, f"the end of {run_id}")
        return record

    async def rests(self, services: Services, queue: SharedQueue, run_id: str, tries: int) -> None:
        """It has been tried so often and waits until it is tried again: it has nobody's place."""
        await until(
            lambda: (self.tries(services, run_id), self.states(queue)[run_id]) == (tries, QueueState.DELAYED),
            f"try {tries}",
        )
        assert run_id not in {each.run_id for each in queue.claimed()}
        assert services.reader.run(run_id) is None

    @pytest.mark.parametrize("action", ["foo.bar", "'exec', needs: [nowhere]", "]"])
    async def test_it_rests_and_holds_up_nobody_and_is_failed_after_as_many_tries_as_are_allowed(
        self, bench: Bench, setup: Setup, action: str
    ) -> None:
        async with (
            opened(bench, setup, max_takeovers=2) as (services, launcher),
            worker_in_process(services, launcher, setup.ledger_url) as queue,
        ):
            self.enqueued(queue, "first", action)
            for number in range(3):
                self.enqueued(queue, f"honest-{number}", "exec")
            for tried in (1, 2):
                await self.rests(services, queue, "first", tried)
                for number in range(3):
                    assert (await self.ended(services, f"honest-{number}")).state is RunState.SUCCEEDED
                queue.wake("first")
            run = await self.ended(services, "first")
            assert run.state is RunState.FAILED
            assert run.reason.startswith("tried 3 times: it cannot be carried out here")
            await until(lambda: self.states(queue) == {"first": QueueState.DEAD}, "it to be given up")
            queue.wake("first")
            assert self.states(queue) == {"first": QueueState.DEAD}
            assert services.reader.verify("first") is None

    async def test_it_is_tried_again_by_itself_when_its_pause_is_over(
        self, bench: Bench, setup: Setup, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("orchestrator.scheduling.queue.carrying.pause_after", lambda *given: 0.5)
        async with (
            opened(bench, setup, max_takeovers=1) as (services, launcher),
            worker_in_process(services, launcher, setup.ledger_url) as queue,
        ):
            self.enqueued(queue, "first", "foo.bar")
            assert (await self.ended(services, "first")).reason.startswith("tried 2 times")

    async def test_one_of_an_agent_that_is_cut_off_is_ended(self, bench: Bench, setup: Setup) -> None:
        async with (
            opened(bench, setup) as (services, launcher),
            worker_in_process(services, launcher, setup.ledger_url) as queue,
        ):
            services.agents.block("tester", until=None, by="root", reason="wild", now=services.clock.now())
            self.enqueued(queue, "refused", "exec")
            run = await self.ended(services, "refused")
            assert (run.state, run.reason) == (RunState.FAILED, "the agent `tester` is cut off")
            await until(lambda: self.states(queue) == {}, "the queue to be empty")
            assert services.reader.leases(LeaseFilter(run="refused")) == []
            services.agents.restore("tester")
            self.enqueued(queue, "welcome", "exec")
            assert (await self.ended(services, "welcome")).state is RunState.SUCCEEDED

    async def test_tries_count_over_all_workers_and_one_who_can_load_it_carries_it_out(
        self, bench: Bench, setup: Setup, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(
                "orchestrator.scheduling.queue.carrying.recorded_workflow", lambda *given, **named: {}["no"]
            )
            for tried in (1, 2):
                async with (
                    opened(bench, setup, max_takeovers=3) as (services, launcher),
                    worker_in_process(services, launcher, setup.ledger_url) as queue,
                ):
                    if tried == 1:
                        self.enqueued(queue, "wanted", "exec")
                    queue.wake("wanted")
                    await self.rests(services, queue, "wanted", tried)
        async with (
            opened(bench, setup, max_takeovers=3) as (services, launcher),
            worker_in_process(services, launcher, setup.ledger_url) as queue,
        ):
            queue.wake("wanted")
            assert (await self.ended(services, "wanted")).state is RunState.SUCCEEDED
