"""A run that ends every process which takes it: after a few it is failed, and whoever is left lives and works on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bench import Bench, Setup
from fork_server import ForkServer
from queued import queued
from test_takeover import Team, events
from waiting import wait_for

from orchestrator.actions.catalog import catalog
from orchestrator.assembly import open_services
from orchestrator.clock import SystemClock
from orchestrator.ledger.lease import FINAL
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.states import RunState
from orchestrator.ledger.types import LeaseFilter
from orchestrator.redaction.redactor import Redactor
from orchestrator.runs.types import RunRequest, Services
from orchestrator.scheduling.launcher import Launcher
from orchestrator.scheduling.queue import claiming, enqueue
from orchestrator.workflow.loader import load_text

pytestmark = pytest.mark.parametrize("setup", ["sqlite"], indirect=True)

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


def test_a_queued_run_that_ends_who_reads_it_is_failed_by_the_next_one_without_being_read(team: Victims) -> None:
    run_id = queued(team.ledger_url, team.flow("poison"))
    behind = queued(team.ledger_url, team.flow("other", sql="SELECT 1"))
    for _ in range(2):
        assert team.poisoned().wait(60) == -9
    last = team.poisoned()
    record = wait_for(lambda: team.ended(run_id), "the run to end")
    assert (record.state, record.workflow) == (RunState.FAILED, "poison")
    assert "2 workers died or failed before they could begin it" in record.reason
    assert wait_for(lambda: team.ended(behind), "the run behind it").state is RunState.SUCCEEDED
    assert last.poll() is None
    assert "work" not in team.marks.read_text(), "of the other one"


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
    assert [e.data["goes_on"] for e in events(team, run_id) if e.kind == "run.taken_over"] == [True, True]
    assert team.command("leases", "sweep").returncode == 0
    assert {lease.state for lease in team.leases(run_id)} <= FINAL


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


class Ahead:
    """A clock that a test sets forward."""

    def __init__(self) -> None:
        self._real, self.ahead = SystemClock(), 0.0

    def now(self) -> Any:
        return self._real.now()

    def monotonic(self) -> float:
        return self._real.monotonic() + self.ahead


class TestWhatCannotBeLoaded:
    """An action that is only installed where the run was enqueued, or a text that does not load any more."""

    def enqueued(self, services: Services, run_id: str, action: str) -> None:
        loaded = load_text(UNKNOWN.format(name="w", action="exec"), filename="w.yaml", actions=catalog)
        text = UNKNOWN.format(name="w", action=action)
        from orchestrator.workflow.loader import digest_of

        request = RunRequest(
            run_id=run_id, loaded=replace(loaded, text=text, digest=digest_of(text)), inputs={}, trigger="queue"
        )
        assert enqueue(services.queue, request, services.clock)

    @pytest.mark.parametrize("action", ["foo.bar", "'exec', needs: [nowhere]", "]"])
    async def test_it_rests_and_holds_up_nobody_and_is_failed_after_as_many_tries_as_are_allowed(
        self, bench: Bench, setup: Setup, action: str
    ) -> None:
        clock = Ahead()
        config = bench.config(ledger_url=setup.ledger_url, clock=clock, max_takeovers=2)
        async with open_services(config, redactor=Redactor()) as services:
            launcher = Launcher(max_runs=4, redactor=Redactor())
            look = claiming(services, launcher, {}, max_runs=4)
            self.enqueued(services, "first", action)
            for number in range(3):
                self.enqueued(services, f"honest-{number}", "exec")
            for tried in (1, 2):
                for _ in range(3):  # within its pause nobody looks at it again
                    await look()
                    await launcher.wait(launcher.active)
                [waiting] = [each for each in services.queue.all() if each.run_id == "first"]
                assert (waiting.tries, waiting.claimed_by) == (tried, None)
                clock.ahead += 1000.0
            for number in range(3):
                run = services.reader.run(f"honest-{number}")
                assert run is not None
                assert run.state is RunState.SUCCEEDED
            await look()
            run = services.reader.run("first")
            assert run is not None
            assert run.state is RunState.FAILED
            assert run.reason.startswith("tried 3 times: it cannot be carried out here")
            assert services.queue.claim("somebody", {}) is None
            assert services.reader.verify("first") is None

    async def test_one_of_an_agent_that_is_cut_off_is_ended(self, bench: Bench, setup: Setup) -> None:
        async with open_services(bench.config(ledger_url=setup.ledger_url), redactor=Redactor()) as services:
            launcher = Launcher(max_runs=4, redactor=Redactor())
            look = claiming(services, launcher, {}, max_runs=4)
            self.enqueued(services, "refused", "exec")
            services.agents.block("tester", until=None, by="root", reason="wild", now=services.clock.now())
            for _ in range(2):
                await look()
                await launcher.wait(launcher.active)
            run = services.reader.run("refused")
            assert run is not None
            assert (run.state, run.reason) == (RunState.FAILED, "the agent `tester` is cut off")
            assert services.queue.claim("somebody", {}) is None
            assert services.reader.leases(LeaseFilter(run="refused")) == []
            services.agents.restore("tester")
            self.enqueued(services, "welcome", "exec")
            await look()
            await launcher.wait(launcher.active)
            welcome = services.reader.run("welcome")
            assert welcome is not None
            assert welcome.state is RunState.SUCCEEDED

    async def test_tries_count_over_all_workers_and_one_who_can_load_it_carries_it_out(
        self, bench: Bench, setup: Setup, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = bench.config(ledger_url=setup.ledger_url, max_takeovers=3)
        async with open_services(config, redactor=Redactor()) as one, open_services(config, redactor=Redactor()) as two:
            launcher = Launcher(max_runs=4, redactor=Redactor())
            self.enqueued(one, "wanted", "exec")
            with monkeypatch.context() as patched:
                patched.setattr("orchestrator.scheduling.queue.recorded_workflow", lambda *given: {}["no"])
                await claiming(one, launcher, {}, max_runs=4)()
                await claiming(two, launcher, {}, max_runs=4)()
            assert [each.tries for each in two.queue.all()] == [2]
            await claiming(two, launcher, {}, max_runs=4)()
            await launcher.wait(launcher.active)
            with open_ledger(setup.ledger_url, clock=SystemClock()) as ledger:
                run = ledger.run("wanted")
            assert run is not None
            assert run.state is RunState.SUCCEEDED
