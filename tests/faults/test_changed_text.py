"""A workflow's text that somebody has changed in the ledger is not run, by whatever way the run would begin again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from bench import Bench, Setup
from fork_server import ForkServer
from queued import queued
from sqlalchemy import text as sql
from test_takeover import Team
from waiting import wait_for

from orchestrator.ledger.lease import FINAL
from orchestrator.ledger.location import locate
from orchestrator.ledger.states import RunState
from orchestrator.ledger.storage.connect import connect
from orchestrator.workflow.loader import digest_of


@pytest.fixture
def team(bench: Bench, setup: Setup, tmp_path: Any, children: ForkServer) -> Iterator[Team]:
    with Team(bench, setup, tmp_path / "marks", children) as team:
        yield team


def execute(team: Team, statement: str, **values: Any) -> list[Any]:
    engine = connect(locate(team.ledger_url))
    try:
        with engine.begin() as connection:
            result = connection.execute(sql(statement), values)
            return list(result) if result.returns_rows else []
    finally:
        engine.dispose()


def other_text(team: Team) -> str:
    """The workflow with another command."""
    [(text,)] = execute(team, "SELECT text FROM workflow_text WHERE text LIKE '%taken_over%'")
    changed = str(text).replace("echo work >>", "echo TAMPERED >>").replace("echo last >>", "echo TAMPERED >>")
    assert changed != text
    return changed


def change_in_place(team: Team) -> None:
    """The row keeps its digest."""
    execute(team, "UPDATE workflow_text SET text = :text WHERE text LIKE '%taken_over%'", text=other_text(team))


def take_away(team: Team) -> None:
    execute(team, "DELETE FROM workflow_text WHERE text LIKE '%taken_over%'")


def change_the_run_too(team: Team) -> None:
    """A row of its own for the other text, and the run's row says its digest: only the history tells."""
    text = other_text(team)
    execute(team, "INSERT INTO workflow_text (digest, text) VALUES (:digest, :text)", digest=digest_of(text), text=text)
    execute(team, "UPDATE run SET digest = :digest WHERE workflow = 'taken_over'", digest=digest_of(text))


def change_what_a_step_gave(team: Team) -> None:
    """A step that was running is said to be over, with an output of somebody's choice."""
    execute(team, "UPDATE step SET state = 'succeeded', outputs = '{\"stdout\": \"TAMPERED\"}' WHERE step = 'work'")


in_queue = pytest.mark.parametrize("setup", ["queue"], indirect=True)


def each(*changes: Callable[[Team], None]) -> pytest.MarkDecorator:
    """Every change, and the first one on both kinds of ledger."""
    cases = [("sqlite", change) for change in changes] + [("postgresql", changes[0])]
    return pytest.mark.parametrize(("setup", "change"), cases, indirect=["setup"])


@in_queue
@pytest.mark.parametrize("change", [take_away, change_in_place])
def test_a_queued_run_is_failed_at_once_and_those_behind_it_are_carried_out(
    team: Team, change: Callable[[Team], None]
) -> None:
    run_id = queued(team.ledger_url, team.flow())
    change(team)
    behind = queued(team.ledger_url, team.flow("other", sql="SELECT 1"))
    team.worker()
    record = wait_for(lambda: team.ended(run_id), "the run to end")
    assert record.state is RunState.FAILED
    assert "text" in record.reason
    assert wait_for(lambda: team.ended(behind), "the run behind it to end").state is RunState.SUCCEEDED
    assert not team.marks.exists() or "TAMPERED" not in team.marks.read_text()
    assert team.command("runs", "verify", run_id).returncode == 0


@in_queue
@pytest.mark.parametrize("change", [change_the_run_too, change_in_place, take_away, change_what_a_step_gave])
def test_a_run_of_a_dead_worker_is_failed_once_its_leases_are_closed(
    team: Team, change: Callable[[Team], None]
) -> None:
    run_id = queued(team.ledger_url, team.flow())
    victim = team.worker()
    wait_for(team.at_work, "the step to hold its login")
    victim.kill()
    victim.wait()
    [login] = team.bench.logins_of_steps()
    change(team)
    team.worker()
    record = wait_for(lambda: team.ended(run_id), "the run to end")
    assert record.state is RunState.FAILED
    assert "it cannot go on" in record.reason or "text" in record.reason
    assert login not in team.bench.logins()
    assert {lease.state for lease in team.leases(run_id)} <= FINAL
    assert "TAMPERED" not in team.marks.read_text()


@each(change_what_a_step_gave, change_in_place, take_away, change_the_run_too)
def test_an_interrupted_run_is_not_resumed(team: Team, change: Callable[[Team], None]) -> None:
    path = team.flow()
    victim = team.start("run", str(path), "--run-id", "ours")
    wait_for(team.at_work, "the step to hold its login")
    victim.kill()
    victim.wait()
    assert team.command("leases", "sweep").returncode == 0
    change(team)
    resumed = team.command("runs", "resume", "ours")
    assert resumed.returncode == 2
    assert "cannot be resumed" in resumed.stderr
    assert team.ended("ours").state is RunState.INTERRUPTED  # type: ignore[union-attr]
    again = team.command("run", str(path), "--run-id", "ours")
    assert again.returncode == 2, again.stderr
    assert team.marks.read_text().split() == ["first", "work"]
    assert team.bench.logins() == []


@each(change_in_place, take_away, change_the_run_too)
def test_a_run_of_a_dead_command_is_failed_by_who_would_go_on_with_it(
    team: Team, change: Callable[[Team], None]
) -> None:
    victim = team.start("run", str(team.flow()), "--run-id", "ours")
    wait_for(team.at_work, "the step to hold its login")
    victim.kill()
    victim.wait()
    change(team)
    resumed = team.command("runs", "resume", "ours")
    assert resumed.returncode == 4
    assert team.ended("ours").state is RunState.FAILED  # type: ignore[union-attr]
    assert team.marks.read_text().split() == ["first", "work"]
    assert team.bench.logins() == []
    assert {lease.state for lease in team.leases("ours")} <= FINAL
