"""What was allowed when a run began is asked again when somebody goes on with it: a tightened policy holds at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from bench import Bench, Setup
from fork_server import ForkServer
from queued import queued
from test_silent_vault import SLEEPING
from test_takeover import Team
from waiting import wait_for

from orchestrator.ledger.lease import FINAL
from orchestrator.ledger.states import RunState

ALLOWING = 'package orchestrator\ndecision := {"allow": true, "reasons": ["open"]}\n'
TIGHTENED = {
    "at the step": 'package orchestrator\ndecision := {"allow": false, "reasons": ["the agent is cut off"]}\n',
    "before anything is evaluated": f'{ALLOWING}admit := {{"allow": false, "reasons": ["the agent is cut off"]}}\n',
}


class Watched(Team):
    """Processes that read the policies of one folder."""

    @property
    def policies(self) -> Path:
        return self.marks.parent / "policies"

    def environment(self) -> dict[str, str]:
        return {
            **super().environment(),
            "ORCHESTRATOR_POLICY": "rego",
            "ORCHESTRATOR_POLICY_PATH": str(self.policies),
        }

    def put(self, text: str) -> None:
        self.policies.mkdir(exist_ok=True)
        (self.policies / ".draft").write_text(text)
        (self.policies / ".draft").rename(self.policies / "policy.rego")


@pytest.fixture
def team(bench: Bench, setup: Setup, tmp_path: Path, children: ForkServer) -> Iterator[Watched]:
    with Watched(bench, setup, tmp_path / "marks", children) as team:
        team.put(ALLOWING)
        yield team


def cut_off(team: Watched, run_id: str) -> None:
    """Assert that the run was refused, that nothing was issued for it since, and that what it had is gone."""
    record = wait_for(lambda: team.ended(run_id), "the run to end")
    assert record.state is RunState.REFUSED
    assert "the agent is cut off" in record.reason
    assert team.marks.read_text().split() == ["first", "work"]
    leases = team.leases(run_id)
    assert {lease.state for lease in leases} <= FINAL
    of_steps = {lease.step_key for lease in leases if lease.step_key.startswith("work-")}
    assert len(of_steps) == 1, "of the attempt that died alone"
    assert team.bench.logins() == []


@pytest.mark.parametrize("where", TIGHTENED)
@pytest.mark.parametrize("setup", ["queue"], indirect=True)
def test_a_worker_that_takes_over_asks_the_policy_of_now(team: Watched, where: str) -> None:
    run_id = queued(team.ledger_url, team.flow())
    victim = team.worker()
    wait_for(team.at_work, "the step to hold its login")
    victim.kill()
    victim.wait()
    team.put(TIGHTENED[where])
    team.worker()
    cut_off(team, run_id)


@pytest.mark.parametrize("where", TIGHTENED)
@pytest.mark.parametrize("setup", ["sqlite"], indirect=True)
def test_who_resumes_a_run_asks_the_policy_of_now(team: Watched, where: str) -> None:
    victim = team.start("run", str(team.flow()), "--run-id", "ours")
    wait_for(team.at_work, "the step to hold its login")
    victim.kill()
    victim.wait()
    assert team.command("leases", "sweep").returncode == 0  # interrupts it
    team.put(TIGHTENED[where])
    resumed = team.command("runs", "resume", "ours")
    assert resumed.returncode == 3, resumed.stderr
    assert "the agent is cut off" in resumed.stderr
    cut_off(team, "ours")


@pytest.mark.parametrize("setup", ["queue"], indirect=True)
def test_a_worker_that_is_at_work_asks_the_policy_of_now_for_the_next_step(team: Watched) -> None:
    run_id = queued(team.ledger_url, team.flow(sql="SELECT pg_sleep(5)"))
    worker = team.worker()
    wait_for(lambda: team.bench.sql(SLEEPING), "the step to be at work")
    team.put(TIGHTENED["at the step"])
    record = wait_for(lambda: team.ended(run_id), "the run to end")
    assert record.state is RunState.REFUSED
    assert "step `last`" in record.reason
    assert team.marks.read_text().split() == ["first"]
    assert worker.poll() is None
    assert team.bench.logins() == []
