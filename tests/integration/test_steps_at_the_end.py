"""Steps that run on failure, or always: also after a cancellation, within the grace, with credentials of their own."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bench import Bench, Setup
from waiting import wait_for

from orchestrator.actions.catalog import catalog
from orchestrator.clock import SystemClock
from orchestrator.errors import ExitCode
from orchestrator.ledger.events import AttemptStarted, StepFinished
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.states import RunState, StepState
from orchestrator.ledger.types import LeaseFilter, RunRecord, StepRecord
from orchestrator.workflow.loader import load_text

WORKFLOW = """
version: 1
name: at_the_end
agent: tester
{more}
steps:
  work:
    action: postgres.query
    grants:
      db: {{ kind: database, connection: support, role: feedback-read }}
    with: {{ sql: "{sql}" }}
  later:
    action: postgres.query
    needs: [work]
    grants:
      db: {{ kind: database, connection: support, role: feedback-read }}
    with: {{ sql: SELECT 1 AS one }}
  tell:
    when: on_failure
    action: exec
    with:
      command: [/bin/cat]
      stdin:
        failed: ${{{{ run.failed }}}}
        work: ${{{{ steps.work.state }}}}
        error: ${{{{ steps.work.error }}}}
    outputs: [stdout]
  tidy:
    when: always
    action: postgres.query
    grants:
      db: {{ kind: database, connection: support, role: feedback-read }}
    with: {{ sql: "{tidy}" }}
    outputs: [rows]
"""
WHO = "SELECT current_user AS login"
SLEEP = "SELECT pg_sleep(60)"
COMMAND = [sys.executable, "-m", "orchestrator.cli"]


def workflow(sql: str = WHO, *, tidy: str = WHO, more: str = "") -> str:
    return WORKFLOW.format(sql=sql, tidy=tidy, more=more)


def test_after_success_what_is_for_failures_is_left_out(bench: Bench) -> None:
    outcome = bench.run(workflow())
    assert outcome.exit_code is ExitCode.DONE
    assert outcome.steps == {
        "work": StepState.SUCCEEDED,
        "later": StepState.SUCCEEDED,
        "tell": StepState.SKIPPED,
        "tidy": StepState.SUCCEEDED,
    }
    assert outcome.outputs["tidy"]["rows"][0]["login"].startswith("orc_tidy-")  # type: ignore[index, call-overload, union-attr]
    bench.assert_nothing_left()


def test_after_a_failure_both_run_with_credentials_of_their_own_and_the_run_has_failed(bench: Bench) -> None:
    outcome = bench.run(workflow("SELECT 1/0"))
    assert outcome.exit_code is ExitCode.STEP_FAILED
    assert outcome.state is RunState.FAILED
    assert outcome.steps == {
        "work": StepState.FAILED,
        "later": StepState.SKIPPED,
        "tell": StepState.SUCCEEDED,
        "tidy": StepState.SUCCEEDED,
    }
    told = str(outcome.outputs["tell"]["stdout"])
    assert '"failed": ["work"]' in told
    assert '"work": "failed"' in told
    assert "division by zero" in told
    assert outcome.outputs["tidy"]["rows"][0]["login"].startswith("orc_tidy-")  # type: ignore[index, call-overload, union-attr]
    bench.assert_nothing_left()


def test_a_step_at_the_end_that_fails_fails_the_run(bench: Bench) -> None:
    outcome = bench.run(workflow(tidy="SELECT 1/0"))
    assert outcome.exit_code is ExitCode.STEP_FAILED
    assert outcome.steps["tidy"] is StepState.FAILED
    assert outcome.steps["tell"] is StepState.SKIPPED  # it waits for the others, not for what ends with it
    bench.assert_nothing_left()


def test_after_the_timeout_of_the_run_they_still_have_the_grace(bench: Bench) -> None:
    outcome = bench.run(workflow(SLEEP, more="timeout: 2s"))
    assert outcome.exit_code is ExitCode.STEP_FAILED
    assert "timeout of 2s" in outcome.reason
    assert outcome.steps["work"] is StepState.CANCELLED
    assert (outcome.steps["tell"], outcome.steps["tidy"]) == (StepState.SUCCEEDED, StepState.SUCCEEDED)
    bench.assert_nothing_left()


def test_what_outlasts_the_grace_is_cancelled_and_its_login_is_gone(bench: Bench) -> None:
    began = time.monotonic()
    outcome = bench.run(workflow(SLEEP, tidy=SLEEP, more="timeout: 2s"), grace=3.0)
    assert time.monotonic() - began < 25  # and not the half minute that there is else
    assert outcome.steps["tidy"] is StepState.CANCELLED
    assert outcome.steps["tell"] is StepState.SUCCEEDED
    assert outcome.exit_code is ExitCode.STEP_FAILED
    bench.assert_nothing_left()


class Started:
    """A run in a process of its own."""

    def __init__(self, bench: Bench, setup: Setup, folder: Path, text: str) -> None:
        self.bench = bench
        self.ledger_url = setup.ledger_url
        bench.install(load_text(text, filename="w.yaml", actions=catalog).workflow)
        (folder / "w.yaml").write_text(text)
        self.environment = bench.environment(
            ORCHESTRATOR_POLICY="allow-all",
            ORCHESTRATOR_LEDGER_URL=setup.ledger_url,
            ORCHESTRATOR_GRACE="15",
        )
        self.out = folder / "out"
        with self.out.open("w") as out:
            self.process = subprocess.Popen(
                [*COMMAND, "run", str(folder / "w.yaml"), "--run-id", "r1"],
                env=self.environment,
                stdout=out,
                stderr=out,
            )

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*COMMAND, *arguments], env=self.environment, capture_output=True, text=True, timeout=120)

    def steps(self) -> dict[str, StepRecord]:
        with open_ledger(self.ledger_url, clock=SystemClock()) as ledger:
            return {each.step: each for each in ledger.steps("r1")}

    def run(self) -> RunRecord:
        with open_ledger(self.ledger_url, clock=SystemClock()) as ledger:
            assert ledger.verify("r1") is None
            found = ledger.run("r1")
            assert found is not None
            return found

    def wait_until_it_works(self) -> None:
        wait_for(
            lambda: self.bench.sql(
                "SELECT pid FROM pg_stat_activity WHERE usename LIKE 'orc\\_%' AND wait_event = 'PgSleep'"
            ),
            "the step to query",
        )


@pytest.mark.parametrize("setup", ["sqlite", "postgresql"], indirect=True)
@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "runs cancel"])
def test_after_a_cancellation_they_run_with_credentials_of_their_own(
    bench: Bench, setup: Setup, how: str, tmp_path: Path
) -> None:
    started = Started(bench, setup, tmp_path, workflow(SLEEP))
    started.wait_until_it_works()
    if how == "runs cancel":
        assert started.command("runs", "cancel", "r1").returncode == 0
    else:
        started.process.send_signal(getattr(signal, how))
    code = started.process.wait(timeout=60)
    assert code == {"SIGTERM": 143}.get(how, 130), started.out.read_text()
    steps = started.steps()
    assert {name: each.state.value for name, each in steps.items()} == {
        "work": "cancelled",
        "later": "cancelled",
        "tell": "succeeded",
        "tidy": "succeeded",
    }
    assert started.run().state is RunState.CANCELLED
    kept = steps["tidy"].outputs
    assert kept["rows"][0]["login"].startswith("orc_tidy-")  # type: ignore[index, call-overload]
    with open_ledger(setup.ledger_url, clock=SystemClock()) as ledger:
        leases = [each for each in ledger.leases(LeaseFilter(run="r1")) if each.grant == "db"]
    assert {each.step: each.state.value for each in leases} == {"work": "revoked", "tidy": "revoked"}
    bench.assert_nothing_left()


@pytest.mark.parametrize("setup", ["sqlite"], indirect=True)
def test_after_a_kill_they_run_when_the_run_is_gone_on_with(bench: Bench, setup: Setup, tmp_path: Path) -> None:
    text = workflow(SLEEP).replace("  work:\n", "  work:\n    on_crash: fail\n")
    started = Started(bench, setup, tmp_path, text)
    started.wait_until_it_works()
    started.process.kill()
    started.process.wait()
    done = started.command("runs", "resume", "r1")
    assert done.returncode == 4, done.stdout + done.stderr
    assert {name: each.state.value for name, each in started.steps().items()} == {
        "work": "failed",
        "later": "skipped",
        "tell": "succeeded",
        "tidy": "succeeded",
    }
    bench.assert_nothing_left()


@pytest.mark.parametrize("setup", ["sqlite"], indirect=True)
def test_killed_in_a_step_at_the_end_it_is_carried_out_again(bench: Bench, setup: Setup, tmp_path: Path) -> None:
    started = Started(bench, setup, tmp_path, workflow("SELECT 1/0", tidy=SLEEP))
    started.wait_until_it_works()
    started.process.kill()
    started.process.wait()
    with subprocess.Popen(
        [*COMMAND, "runs", "resume", "r1"],
        env=started.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as resumed:
        wait_for(lambda: started.steps()["tidy"].attempts == 2, "the step to be tried again")
        started.wait_until_it_works()
        resumed.send_signal(signal.SIGTERM)
        assert resumed.wait(timeout=60) == 143
    steps = started.steps()
    assert steps["tidy"].attempts == 2
    assert steps["tidy"].state is StepState.CANCELLED  # it outlasted the grace
    assert steps["work"].attempts == 1
    bench.assert_nothing_left()


def test_a_step_at_the_end_may_wait_for_some_steps_only(bench: Bench) -> None:
    text = """
version: 1
name: some
agent: tester
steps:
  make: { action: exec, with: { command: [/bin/true] } }
  use: { action: exec, needs: [make], with: { command: [/bin/false] } }
  remove: { action: exec, needs: [use], when: always, with: { command: [/bin/true] } }
  other: { action: exec, needs: [remove], with: { command: [/bin/true] } }
"""
    outcome = bench.run(text)
    assert {name: state.value for name, state in outcome.steps.items()} == {
        "make": "succeeded",
        "use": "failed",
        "remove": "succeeded",
        "other": "succeeded",
    }
    order = [event.step for event in bench.events if isinstance(event, AttemptStarted)]
    assert order == ["make", "use", "remove", "other"]
    assert outcome.exit_code is ExitCode.STEP_FAILED
    assert [event.step for event in bench.events if isinstance(event, StepFinished)][-1] == "other"
