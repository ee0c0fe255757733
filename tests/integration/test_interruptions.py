"""Signals and time-outs in the middle of a step and in the middle of an issuance: nothing is left, and said so."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench import Bench
from waiting import wait_for

from orchestrator.clock import SystemClock
from orchestrator.errors import ExitCode
from orchestrator.ledger.lease import LeaseState
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.types import LeaseFilter

WORKFLOW = """
version: 1
name: {name}
agent: tester
steps:
  slow:
    action: postgres.query
    grants:
      db: {{ kind: database, connection: support, role: {role} }}
    with: {{ sql: "{sql}" }}
    timeout: {timeout}
"""
SLEEP = "SELECT pg_sleep(60)"
IN_ITS_STEP = "SELECT pid FROM pg_stat_activity WHERE usename LIKE 'orc\\_%' AND wait_event = 'PgSleep'"


@pytest.fixture
def slow_role(bench: Bench) -> Iterator[str]:
    """A database role whose logins take two seconds to be made."""
    vault = bench.vault
    like = vault.read("database/roles/feedback-read")["data"]
    allowed = vault.read("database/config/support")["data"]["allowed_roles"]
    vault.write("database/config/support", allowed_roles=[*allowed, "slow-role"])
    statements = [*like["creation_statements"], "SELECT pg_sleep(2)"]
    vault.write_data("database/roles/slow-role", data={**like, "creation_statements": statements})
    yield "slow-role"
    vault.delete("database/roles/slow-role")
    vault.write("database/config/support", allowed_roles=allowed)


def prepared(bench: Bench, text: str, name: str) -> Path:
    from orchestrator.actions.catalog import catalog
    from orchestrator.workflow.loader import load_text

    bench.install(load_text(text, filename="test.yaml", actions=catalog).workflow)
    file = bench.directory / f"{name}.yaml"
    file.write_text(text)
    return file


def environment(bench: Bench) -> dict[str, str]:
    return {**bench.environment(), "ORCHESTRATOR_POLICY": "allow-all"}


def start(bench: Bench, text: str, name: str, *before: str) -> subprocess.Popen[str]:
    file = prepared(bench, text, name)
    with (bench.directory / "stdout").open("w") as stdout, (bench.directory / "stderr").open("w") as stderr:
        return subprocess.Popen(
            [*before, sys.executable, "-m", "orchestrator.cli", "run", str(file)],
            env=environment(bench),
            stdout=stdout,
            stderr=stderr,
            text=True,
        )


def lease_states(directory: Path) -> set[LeaseState]:
    with open_ledger(f"sqlite:///{directory / 'ledger.db'}", clock=SystemClock()) as ledger:
        leases = ledger.leases(LeaseFilter())
        assert leases
        assert all(ledger.verify(lease.run_id) is None for lease in leases)
        return {lease.state for lease in leases}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_in_the_middle_of_a_step_revokes_before_it_ends(
    bench: Bench, number: signal.Signals, code: int
) -> None:
    process = start(bench, WORKFLOW.format(name="mid_step", role="feedback-read", sql=SLEEP, timeout="60s"), "mid")
    wait_for(lambda: bench.sql(IN_ITS_STEP), "the step to query")
    process.send_signal(number)
    assert process.wait(30) == code
    bench.assert_nothing_left()
    assert lease_states(bench.directory) == {LeaseState.REVOKED}


def test_a_terminal_that_is_closed_ends_the_run_after_revoking(bench: Bench) -> None:
    file = prepared(bench, WORKFLOW.format(name="on_screen", role="feedback-read", sql=SLEEP, timeout="60s"), "screen")
    process, terminal = pty.fork()
    if process == 0:
        os.execve(sys.executable, [sys.executable, "-m", "orchestrator.cli", "run", str(file)], environment(bench))
    try:
        wait_for(lambda: bench.sql(IN_ITS_STEP), "the step to query")
    finally:
        os.close(terminal)
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == 129
    bench.assert_nothing_left()
    assert lease_states(bench.directory) == {LeaseState.REVOKED}


def test_a_run_that_was_begun_with_nohup_goes_on_without_its_terminal(bench: Bench) -> None:
    sql = "SELECT pg_sleep(1)"
    text = WORKFLOW.format(name="unattended", role="feedback-read", sql=sql, timeout="60s")
    process = start(bench, text, "nohup", "nohup")
    wait_for(lambda: bench.sql(IN_ITS_STEP), "the step to query")
    process.send_signal(signal.SIGHUP)
    assert process.wait(30) == 0
    bench.assert_nothing_left()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_the_middle_of_an_issuance_waits_for_the_answer_and_revokes_it(
    bench: Bench, slow_role: str, number: signal.Signals, code: int
) -> None:
    process = start(bench, WORKFLOW.format(name="mid_issue", role=slow_role, sql=SLEEP, timeout="60s"), "issue")
    issuing = "SELECT pid FROM pg_stat_activity WHERE usename = 'orchestrator_vault' AND wait_event = 'PgSleep'"
    wait_for(lambda: bench.sql(issuing), "Vault to create the login")
    process.send_signal(number)
    process.send_signal(number)
    assert process.wait(30) == code
    bench.assert_nothing_left()
    assert lease_states(bench.directory) == {LeaseState.REVOKED}


def test_a_time_out_in_the_middle_of_a_step_revokes(bench: Bench) -> None:
    text = WORKFLOW.format(name="late_step", role="feedback-read", sql=SLEEP, timeout="2s")
    outcome = bench.run(text)
    assert outcome.exit_code is ExitCode.STEP_FAILED
    bench.assert_nothing_left()
    assert {lease.state for lease in bench.history(outcome.run_id)} == {LeaseState.REVOKED}


def test_a_time_out_in_the_middle_of_an_issuance_waits_for_the_answer_and_revokes_it(
    bench: Bench, slow_role: str
) -> None:
    outcome = bench.run(WORKFLOW.format(name="late_issue", role=slow_role, sql="SELECT 1", timeout="1s"))
    assert outcome.exit_code is ExitCode.STEP_FAILED
    assert "timeout" in outcome.reason
    bench.assert_nothing_left()
    assert {lease.state for lease in bench.history(outcome.run_id)} == {LeaseState.REVOKED}


def test_a_run_that_takes_too_long_is_ended_as_a_whole(bench: Bench) -> None:
    text = WORKFLOW.format(name="late_run", role="feedback-read", sql=SLEEP, timeout="60s").replace(
        "agent: tester", "agent: tester\ntimeout: 2s"
    )
    outcome = bench.run(text)
    assert outcome.exit_code is ExitCode.STEP_FAILED
    assert "the run took longer" in outcome.reason
    bench.assert_nothing_left()


def test_a_role_that_vault_lost_is_found_by_its_step_key_and_dropped(bench: Bench) -> None:
    """What Vault leaves behind when it loses a lease: a login role that no Vault call can remove."""
    import asyncio

    from orchestrator.assembly import open_services
    from orchestrator.credentials.types import Attempt
    from orchestrator.ledger.events import RunStarted
    from orchestrator.ledger.ids import new_run_id, new_step_key
    from orchestrator.redaction.redactor import Redactor

    mine, other = new_step_key("lost"), new_step_key("lost")
    for key in (mine, other):
        bench.sql(f'SET ROLE orchestrator_vault; CREATE ROLE "orc_{key}_Ab3dEf6h" LOGIN')

    async def sweep() -> tuple[str, ...]:
        async with open_services(bench.config(), redactor=Redactor()) as services:
            run_id = new_run_id()
            started = RunStarted(workflow="w", digest="", agent="a", trigger="test", inputs={}, steps=("lost",))
            fence = await services.ledger.begin_run(run_id, started)
            attempt = Attempt(run_id, fence, "w", "lost", 1, "a", mine, (), "", time.monotonic() + 30)
            assert services.broker.duties is not None
            deadline = time.monotonic() + 30
            return (await services.broker.duties.sweep(attempt, "support", [mine], deadline=deadline)).dropped

    try:
        assert asyncio.run(sweep()) == (f"orc_{mine}_Ab3dEf6h",)
        assert bench.logins() == [f"orc_{other}_Ab3dEf6h"], "the roles of another step are not touched"
    finally:
        bench.sql(f'DROP ROLE IF EXISTS "orc_{other}_Ab3dEf6h"')
        bench.sql(f'DROP ROLE IF EXISTS "orc_{mine}_Ab3dEf6h"')
