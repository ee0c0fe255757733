"""Several processes on one ledger: what one leaves when it dies another one closes and goes on with."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bench import Bench, Setup
from fork_server import ForkServer
from queued import queued
from team import Team
from waiting import wait_for

from orchestrator.clock import SystemClock
from orchestrator.ledger.ids import new_run_id
from orchestrator.ledger.lease import FINAL
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.states import RunState

in_queue = pytest.mark.parametrize("setup", ["queue"], indirect=True)
one_ledger = pytest.mark.parametrize("setup", ["sqlite"], indirect=True)
both_ledgers = pytest.mark.parametrize("setup", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture
def team(bench: Bench, setup: Setup, tmp_path: Path, children: ForkServer) -> Iterator[Team]:
    with Team(bench, setup, tmp_path / "marks", children) as team:
        yield team


@in_queue
def test_a_living_worker_finishes_the_run_of_a_killed_one(team: Team) -> None:
    run_id = queued(team.ledger_url, team.flow())
    team.worker()
    team.worker()
    wait_for(team.at_work, "the step to hold its login")
    victim = team.driver(run_id)
    victim.kill()
    record = wait_for(lambda: team.ended(run_id), "the run to end", 30)
    assert record.state is RunState.SUCCEEDED
    assert team.marks.read_text().split() == ["first", "work", "work", "last"]
    assert team.bench.logins_of_steps() == []
    assert {lease.state for lease in team.leases(run_id)} <= FINAL
    wait_for(lambda: team.in_dbos() == {run_id: "SUCCESS"}, "DBOS to have the end")


@in_queue
def test_a_worker_that_was_stopped_can_do_nothing_more_under_its_old_fence(team: Team) -> None:
    run_id = queued(team.ledger_url, team.flow())
    team.worker()
    team.worker()
    wait_for(team.at_work, "the step to hold its login")
    stopped = team.driver(run_id)
    login = team.bench.logins_of_steps()
    stopped.send_signal(signal.SIGSTOP)
    record = wait_for(lambda: team.ended(run_id), "the run to end elsewhere", 40)
    assert record.state is RunState.SUCCEEDED
    assert not set(login) & set(team.bench.logins_of_steps()), "its credential went before the run went on"
    history = len(events(team, run_id))
    stopped.send_signal(signal.SIGCONT)
    stopped.terminate()
    stopped.communicate(timeout=60)
    assert len(events(team, run_id)) == history, "nothing was written under the old fence"
    assert team.marks.read_text().split() == ["first", "work", "work", "last"]
    assert team.bench.logins_of_steps() == []
    wait_for(lambda: team.in_dbos() == {run_id: "SUCCESS"}, "DBOS to have the end")


def events(team: Team, run_id: str) -> list[Any]:
    with open_ledger(team.ledger_url, clock=SystemClock()) as ledger:
        return list(ledger.events(run_id))


class TestOneShot:
    @both_ledgers
    def test_a_killed_run_is_gone_on_with_under_its_id_and_then_only_told(self, team: Team) -> None:
        path, run_id = team.flow(), new_run_id()
        victim = team.start("run", str(path), "--run-id", run_id)
        wait_for(team.at_work, "the step to hold its login")
        victim.kill()
        victim.wait()
        again = team.command("run", str(path), "--run-id", run_id)
        assert again.returncode == 0, again.stderr
        assert team.marks.read_text().split() == ["first", "work", "work", "last"]
        told = team.command("run", str(path), "--run-id", run_id, "--json")
        assert told.returncode == 0
        assert team.marks.read_text().split() == ["first", "work", "work", "last"]
        assert team.bench.logins_of_steps() == []
        assert {lease.state for lease in team.leases(run_id)} <= FINAL

    @both_ledgers
    def test_a_step_that_must_not_be_repeated_fails_the_run(self, team: Team) -> None:
        path, run_id = team.flow(step="on_crash: fail"), new_run_id()
        victim = team.start("run", str(path), "--run-id", run_id)
        wait_for(team.at_work, "the step to hold its login")
        victim.kill()
        victim.wait()
        resumed = team.command("runs", "resume", run_id)
        assert resumed.returncode == 4
        assert "the orchestrator died while the step ran" in resumed.stderr
        assert team.marks.read_text().split() == ["first", "work"]
        assert team.bench.logins_of_steps() == []

    @one_ledger
    def test_any_later_run_closes_what_a_dead_process_left(self, team: Team) -> None:
        path, run_id = team.flow(), new_run_id()
        victim = team.start("run", str(path), "--run-id", run_id)
        wait_for(team.at_work, "the step to hold its login")
        victim.kill()
        victim.wait()
        assert len(team.bench.logins_of_steps()) == 1
        shown = team.command("leases", "sweep", "--dry-run", "--json")
        assert len(json.loads(shown.stdout)) == 2
        flow = str(team.flow("other", sql="SELECT 1"))
        other = team.command("run", flow)
        assert other.returncode == 0, other.stderr
        assert f"`orchestrator runs resume {run_id}` goes on with it" in other.stdout + other.stderr
        assert "interrupted" not in other.stdout, "its own summary is of its own run"
        assert team.bench.logins_of_steps() == []
        assert {lease.state for lease in team.leases(run_id)} <= FINAL
        record = team.run(run_id)
        assert record is not None
        assert (record.state, record.exit_code) == (RunState.INTERRUPTED, 130)
        assert record.reason.endswith("is gone")
        before = events(team, run_id)
        again = team.command("run", flow)
        assert again.returncode == 0
        assert run_id not in again.stdout + again.stderr, "nobody speaks of it again"
        assert team.command("leases", "sweep").returncode == 0
        assert events(team, run_id) == before, "nor touches it"
        assert team.command("runs", "resume", run_id).returncode == 0
        assert team.marks.read_text().split().count("first") == 3, "one of each run"

    @one_ledger
    def test_quiet_says_nothing_of_other_runs(self, team: Team) -> None:
        path, run_ids = team.flow(), [new_run_id(), new_run_id()]
        for run_id in run_ids:
            team.marks.unlink(missing_ok=True)
            victim = team.start("run", str(path), "--run-id", run_id)
            wait_for(lambda: team.marks.exists() and "work" in team.marks.read_text(), "the step to work")
            victim.kill()
            victim.wait()
        flow = str(team.flow("other", sql="SELECT 1"))
        quiet = team.command("run", flow, "--quiet")
        assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
        assert {team.ended(run_id).state for run_id in run_ids} == {RunState.INTERRUPTED}  # type: ignore[union-attr]

    @one_ledger
    def test_json_tells_of_its_own_run_only(self, team: Team) -> None:
        path, run_id = team.flow(), new_run_id()
        victim = team.start("run", str(path), "--run-id", run_id)
        wait_for(team.at_work, "the step to hold its login")
        victim.kill()
        victim.wait()
        other = team.command("run", str(team.flow("other", sql="SELECT 1")), "--json")
        assert other.returncode == 0
        lines = [json.loads(line) for line in other.stdout.splitlines()]
        assert len({line["run"] for line in lines}) == 1
        assert run_id not in other.stdout

    @both_ledgers
    def test_a_run_that_is_killed_again_and_again_is_interrupted_each_time_and_finished_at_last(
        self, team: Team
    ) -> None:
        path, run_id = team.flow(), new_run_id()
        command = ["run", str(path), "--run-id", run_id]
        for turn in range(3):
            team.marks.write_text("first")  # so that the step takes its time again
            victim = team.start(*command)
            wait_for(
                lambda: bool(team.bench.logins_of_steps()) and "work" in team.marks.read_text(), "the step to work"
            )
            victim.kill()
            victim.wait()
            assert team.command("leases", "sweep").returncode == 0
            record = team.run(run_id)
            assert record is not None
            assert record.state is RunState.INTERRUPTED
            command = ["runs", "resume", run_id] if turn % 2 else ["run", str(path), "--run-id", run_id]
        assert team.command("runs", "resume", run_id).returncode == 0
        assert team.ended(run_id).state is RunState.SUCCEEDED  # type: ignore[union-attr]
        assert team.bench.logins_of_steps() == []
        kinds = [event.kind for event in events(team, run_id)]
        assert kinds.count("run.resumed") == kinds.count("run.finished") - 1 == 3
        ended = [(e.data["step"], e.data["attempt"]) for e in events(team, run_id) if e.kind == "attempt.finished"]
        assert len(ended) == len(set(ended))

    @in_queue
    def test_a_worker_ends_the_run_of_a_dead_command_and_does_not_go_on_with_it(self, team: Team) -> None:
        path, run_id = team.flow(), new_run_id()
        victim = team.start("run", str(path), "--run-id", run_id)
        wait_for(team.at_work, "the step to hold its login")
        victim.kill()
        victim.wait()
        team.worker()
        record = wait_for(lambda: team.ended(run_id), "the run to be ended")
        assert record.state is RunState.INTERRUPTED
        assert [login for login in team.bench.logins_of_steps() if "_work-" in login] == [], (
            "the worker's own sweeps are its own"
        )
        assert team.marks.read_text().split() == ["first", "work"]

    @in_queue
    def test_a_command_closes_what_a_worker_left_and_leaves_the_run_to_another_worker(self, team: Team) -> None:
        run_id = queued(team.ledger_url, team.flow())
        victim = team.worker()
        wait_for(team.at_work, "the step to hold its login")
        victim.kill()
        victim.wait()
        flow = str(team.flow("other", sql="SELECT 1"))
        assert team.command("run", flow).returncode == 0
        assert team.bench.logins_of_steps() == []
        assert {lease.state for lease in team.leases(run_id)} <= FINAL
        record = team.run(run_id)
        assert record is not None
        assert record.state is RunState.RUNNING
        before = events(team, run_id)
        again = team.command("run", flow)
        assert run_id not in again.stdout + again.stderr
        assert events(team, run_id) == before
        team.worker()
        record = wait_for(lambda: team.ended(run_id), "another worker to finish it")
        assert record.state is RunState.SUCCEEDED
        assert team.marks.read_text().split().count("work") == 2

    @one_ledger
    def test_without_its_secret_input_a_run_stays_resumable(self, team: Team) -> None:
        path, run_id = team.flow(top="inputs: { key: { type: string, secret: true } }"), new_run_id()
        given = team.bench.directory / "inputs.json"
        given.write_text('{"key": "opensesame"}')
        victim = team.start("run", str(path), "--run-id", run_id, "--inputs", str(given))
        wait_for(team.at_work, "the step to hold its login")
        victim.kill()
        victim.wait()
        for _ in range(2):
            refused = team.command("runs", "resume", run_id)
            assert refused.returncode == 2
            assert "the secret input `key` is not kept in the ledger" in refused.stderr
            assert team.ended(run_id).state is RunState.INTERRUPTED  # type: ignore[union-attr]
        assert team.command("runs", "resume", run_id, "--inputs", str(given)).returncode == 0
        assert team.bench.logins_of_steps() == []

    @one_ledger
    def test_a_run_of_a_living_process_is_not_taken(self, team: Team) -> None:
        path, run_id = team.flow(), new_run_id()
        living = team.start("run", str(path), "--run-id", run_id)
        wait_for(team.at_work, "the step to hold its login")
        refused = team.command("runs", "resume", run_id)
        assert refused.returncode == 2
        assert "is being driven by" in refused.stderr
        cancelled = team.command("runs", "cancel", run_id, "--reason", "not needed")
        assert cancelled.returncode == 0
        assert living.wait(30) == 130
        record = team.run(run_id)
        assert record is not None
        assert (record.state, record.reason) == (RunState.CANCELLED, "not needed")
        assert team.bench.logins_of_steps() == []

    @one_ledger
    def test_a_run_id_of_another_workflow_is_refused(self, team: Team) -> None:
        run_id = new_run_id()
        assert team.command("run", str(team.flow("one", sql="SELECT 1")), "--run-id", run_id).returncode == 0
        other = team.command("run", str(team.flow("two", sql="SELECT 1")), "--run-id", run_id)
        assert other.returncode == 2
        assert "another workflow" in other.stderr

    @one_ledger
    def test_a_single_lease_can_be_taken_back_under_a_running_step(self, team: Team) -> None:
        path, run_id = team.flow(), new_run_id()
        living = team.start("run", str(path), "--run-id", run_id)
        wait_for(team.at_work, "the step to hold its login")
        lease = next(each for each in team.leases(run_id) if each.grant == "db")
        assert team.command("leases", "revoke", lease.lease_id).returncode == 0
        assert team.bench.logins_of_steps() == []
        living.terminate()
        assert living.wait(30) == 143


LOGINS_SEEN = (
    "SELECT (SELECT count(*) FROM pg_roles WHERE starts_with(rolname, 'orc_work')) AS logins FROM pg_sleep(0.3)"
)
"""What a step sees in the catalog of logins of its kind, its own among them, once it has slept."""


@in_queue
def test_limits_hold_over_all_workers(team: Team) -> None:
    path = team.flow("limited", top="max_runs: 1", sql=LOGINS_SEEN, step="outputs: [rows]")
    runs = [queued(team.ledger_url, path) for _ in range(4)]
    team.worker()
    team.worker()
    wait_for(lambda: all(team.ended(run) for run in runs), "all queued runs to end", 60)
    assert {team.ended(run).state for run in runs} == {RunState.SUCCEEDED}  # type: ignore[union-attr]
    shown = [json.loads(team.command("runs", "show", run, "--json").stdout) for run in runs]
    seen = [step["outputs"]["rows"] for each in shown for step in each["steps"] if step["step"] == "work"]
    assert seen == [[{"logins": 1}]] * 4
    assert json.loads(team.command("queue", "list", "--json").stdout) == []
    assert team.marks.read_text().split().count("last") == 4


@in_queue
def test_asking_twice_for_the_same_run_adds_it_once(team: Team) -> None:
    path, run_id = team.flow("twice", sql="SELECT 1"), new_run_id()
    answers = [team.command("queue", "add", str(path), "--run-id", run_id, "--json") for _ in range(2)]
    assert [json.loads(answer.stdout)["added"] for answer in answers] == [True, False]
    assert team.command("queue", "remove", run_id).returncode == 0
    assert team.command("queue", "remove", run_id).returncode == 2
