"""Workflows from a Python program: `from orchestrator import load_workflow, plan, run_workflow`, on real servers."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from bench import Bench
from waiting import wait_for

import orchestrator
from orchestrator import load_workflow, plan, run_workflow, run_workflow_async
from orchestrator.actions.catalog import catalog
from orchestrator.clock import SystemClock
from orchestrator.errors import ExitCode, RunFailed, UsageError
from orchestrator.ledger.events import Event, RunFinished, RunStarted
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.states import RunState, StepState
from orchestrator.settings import Settings
from orchestrator.workflow.loader import load_text
from orchestrator.workflow.problems import InvalidWorkflow

WORKFLOW = """
version: 1
name: embedded
agent: tester
inputs:
  n: { type: integer }
steps:
  work:
    action: postgres.query
    grants:
      db: { kind: database, connection: support, role: feedback-read }
    with: { sql: "SQL", parameters: { n: "${{ inputs.n }}" } }
    outputs: [rows]
"""
SQL = "SELECT %(n)s::int AS n, current_user AS login"
SLEEPS = "SELECT pg_sleep(60), %(n)s::int AS n"
SLEEPING = "SELECT pid FROM pg_stat_activity WHERE usename LIKE 'orc\\_%' AND wait_event = 'PgSleep'"


@pytest.fixture
def file(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The workflow, provisioned; the environment is that of the runtime."""
    for name, value in bench.environment(ORCHESTRATOR_POLICY="allow-all").items():
        monkeypatch.setenv(name, value)
    text = WORKFLOW.replace("SQL", SQL)
    bench.install(load_text(text, filename="w.yaml", actions=catalog).workflow)
    (tmp_path / "w.yaml").write_text(text)
    yield tmp_path / "w.yaml"
    bench.assert_nothing_left()


def slow(file: Path) -> Path:
    file.write_text(file.read_text().replace(SQL, SLEEPS))
    return file


def state_of(bench: Bench, run_id: str) -> RunState:
    with open_ledger(bench.config().ledger_url, clock=SystemClock()) as ledger:
        assert ledger.verify(run_id) is None
        record = ledger.run(run_id)
        assert record is not None
        return record.state


def test_a_program_reads_plans_and_runs_a_workflow(file: Path) -> None:
    workflow = load_workflow(str(file))
    (planned,) = plan(workflow, {"n": 3}).steps
    assert planned.request.step == "work"
    assert [scope.name for scope in planned.request.grants] == ["db"]
    told: list[tuple[str, datetime, Event]] = []
    outcome = run_workflow(workflow, {"n": 3}, reason="nightly", observe=lambda *event: told.append(event))
    outcome.check()
    assert outcome.steps == {"work": StepState.SUCCEEDED}
    row = outcome.outputs["work"]["rows"][0]  # type: ignore[index, call-overload]
    assert row["n"] == 3  # type: ignore[index, call-overload]
    assert str(row["login"]).startswith("orc_work-")  # type: ignore[index, call-overload]
    assert {run for run, _, _ in told} == {outcome.run_id}
    started, finished = told[0][2], told[-1][2]
    assert isinstance(started, RunStarted)
    assert (started.trigger, started.reason) == ("python", "nightly")
    assert isinstance(finished, RunFinished)


def test_a_failure_is_an_outcome_and_an_error_where_that_is_wanted(file: Path, bench: Bench) -> None:
    file.write_text(file.read_text().replace(SQL, "SELECT 1 / (%(n)s::int - 3) AS n"))
    outcome = run_workflow(file, {"n": 3}, run_id="r1", trigger="airflow")
    assert outcome.exit_code is ExitCode.STEP_FAILED
    with pytest.raises(RunFailed, match=r"run r1 failed: .*division by zero") as caught:
        outcome.check()
    assert (caught.value.run_id, caught.value.exit_code) == ("r1", ExitCode.STEP_FAILED)
    again = run_workflow(file, {"n": 3}, run_id="r1", trigger="airflow")
    assert again.exit_code is ExitCode.STEP_FAILED
    assert state_of(bench, "r1") is RunState.FAILED


def test_what_is_wrong_is_raised_before_anything_is_run(file: Path, bench: Bench) -> None:
    with pytest.raises(UsageError, match="`n`"):
        run_workflow(file)
    with pytest.raises(UsageError, match="a run's id"):
        run_workflow(file, {"n": 1}, run_id="no good")
    with pytest.raises(UsageError, match="cannot be read"):
        load_workflow(file.with_name("none.yaml"))
    tools = file.with_name("tools.yaml")
    tools.write_text(
        "version: 1\nname: t\ntools:\n  one: { description: d, action: exec, with: { command: [/bin/true] } }\n"
    )
    with pytest.raises(UsageError, match="it is not run"):
        run_workflow(tools)
    file.write_text("version: 1\nname: w\n")
    with pytest.raises(InvalidWorkflow):
        load_workflow(file)
    with open_ledger(bench.config().ledger_url, clock=SystemClock()) as ledger:
        assert ledger.runs() == []


def test_settings_may_be_given(file: Path, bench: Bench, tmp_path: Path) -> None:
    elsewhere = f"sqlite:///{tmp_path / 'own.db'}"
    outcome = run_workflow(file, {"n": 1}, settings=Settings(ledger_url=elsewhere))
    outcome.check()
    with open_ledger(elsewhere, clock=SystemClock()) as ledger:
        assert ledger.run(outcome.run_id) is not None
    with open_ledger(bench.config().ledger_url, clock=SystemClock()) as ledger:
        assert ledger.run(outcome.run_id) is None


def test_several_run_in_one_event_loop(file: Path) -> None:
    async def both() -> list[int]:
        outcomes = await asyncio.gather(*(run_workflow_async(file, {"n": n}) for n in (1, 2, 3)))
        return [outcome.outputs["work"]["rows"][0]["n"] for outcome in outcomes]  # type: ignore[index, call-overload, misc]

    assert asyncio.run(both()) == [1, 2, 3]


def test_a_cancelled_task_has_given_everything_back_before_it_ends(file: Path, bench: Bench) -> None:
    async def cancelled() -> None:
        task = asyncio.create_task(run_workflow_async(slow(file), {"n": 1}, run_id="c1"))
        await asyncio.to_thread(wait_for, lambda: bench.sql(SLEEPING), "the step to query")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert bench.logins() == []

    asyncio.run(cancelled())
    assert state_of(bench, "c1") is RunState.CANCELLED


def test_it_runs_in_a_thread_that_is_not_the_first(file: Path) -> None:
    outcomes = []
    thread = threading.Thread(target=lambda: outcomes.append(run_workflow(file, {"n": 7})))
    thread.start()
    thread.join(60)
    assert [outcome.exit_code for outcome in outcomes] == [ExitCode.DONE]


def test_a_signal_ends_the_run_and_the_program_goes_on(file: Path, bench: Bench, tmp_path: Path) -> None:
    slow(file)
    program = (
        "from orchestrator import run_workflow\n"
        f"outcome = run_workflow({str(file)!r}, {{'n': 1}}, run_id='s1')\n"
        "print(outcome.state, int(outcome.exit_code), flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        wait_for(lambda: bench.sql(SLEEPING), "the step to query")
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=60)
    assert (out.strip(), process.returncode) == ("cancelled 143", 0)
    assert state_of(bench, "s1") is RunState.CANCELLED


def test_importing_the_package_imports_nothing_of_it() -> None:
    program = (
        "import sys, orchestrator, json\n"
        "print(json.dumps([name for name in sys.modules if name.startswith(('orchestrator', 'pydantic', 'hvac'))]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert sorted(json.loads(done.stdout)) == ["orchestrator", "orchestrator.version"]
    with pytest.raises(AttributeError, match="no attribute 'run'"):
        orchestrator.run  # noqa: B018
    assert all(getattr(orchestrator, name) is not None for name in orchestrator.__all__)
