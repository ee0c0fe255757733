"""Runs inside DBOS: the same outcome as without it, references only in its tables, and no second opinion."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from bench import Bench, Setup
from dbos import DBOSClient
from escaped import holds_secret
from waiting import wait_for

from orchestrator.actions.catalog import catalog
from orchestrator.clock import SystemClock
from orchestrator.devstack.postgres import Postgres
from orchestrator.errors import ExitCode
from orchestrator.ledger.ids import new_run_id
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.states import RunState, StepState
from orchestrator.runs.engines.dbos import SCHEMA
from orchestrator.runs.types import RunOutcome
from orchestrator.workflow.loader import load

every_engine = pytest.mark.parametrize("setup", ["local-sqlite", "dbos-postgresql"], indirect=True)
dbos_only = pytest.mark.parametrize("setup", ["dbos-postgresql"], indirect=True)

DATABASE = "{ kind: database, connection: support, role: feedback-read }"

FAN = f"""
version: 1
name: fan
agent: tester
steps:
  slow:
    action: postgres.query
    grants: {{ db: {DATABASE} }}
    with: {{ sql: SELECT pg_sleep(0.5) }}
  quick:
    action: postgres.query
    grants: {{ db: {DATABASE} }}
    with: {{ sql: SELECT 1 AS one }}
  after:
    needs: [quick]
    action: exec
    with: {{ command: [/bin/true] }}
  last:
    needs: [slow, after]
    action: exec
    with: {{ command: [/bin/true] }}
"""

WAITS = f"""
version: 1
name: waits
agent: tester
steps:
  first:
    action: exec
    with: {{ command: [/bin/sh, -c, "echo first >> __FOLDER__/marks"], paths: {{ write: [__FOLDER__] }} }}
  held:
    needs: [first]
    action: exec
    grants: {{ db: {DATABASE} }}
    with: {{ command: [/bin/sh, -c, "while [ ! -e __FOLDER__/go ]; do sleep 0.05; done"] }}
  last:
    needs: [held]
    action: exec
    with: {{ command: [/bin/sh, -c, "echo last >> __FOLDER__/marks"], paths: {{ write: [__FOLDER__] }} }}
"""

LEAKY = f"""
version: 1
name: leaky
agent: tester
inputs:
  open: {{ type: string }}
  hidden: {{ type: string, secret: true }}
steps:
  keeps_an_output:
    action: postgres.query
    grants: {{ db: {DATABASE} }}
    with: {{ sql: "SELECT %(open)s::text AS value", parameters: {{ open: "${{{{ inputs.open }}}}" }} }}
    outputs: [rows]
  gives_its_password_away:
    action: exec
    grants: {{ db: {DATABASE} }}
    with:
      command: [/bin/sh, -c, 'echo $PASSWORD']
      credentials: {{ env: {{ PASSWORD: db.password }} }}
    outputs: [stdout]
  fails_with_a_message:
    action: postgres.query
    grants: {{ db: {DATABASE} }}
    with:
      sql: "SELECT (%(open)s || 'broken')::integer"
      parameters: {{ open: "${{{{ inputs.open }}}}" }}
      server_messages: true
"""


def run(bench: Bench, setup: Setup, text: str, **how: Any) -> RunOutcome:
    return bench.run(text, engine=setup.engine, ledger_url=setup.ledger_url, **how)


def recorded(setup: Setup, query: str) -> list[Any]:
    """What DBOS has in its tables."""
    with psycopg.connect(setup.ledger_url, autocommit=True, options=f"-c search_path={SCHEMA}") as session:
        return session.execute(query).fetchall()  # type: ignore[arg-type]


def status_of(setup: Setup, workflow: str) -> str:
    return str(dict(recorded(setup, "SELECT workflow_uuid, status FROM workflow_status"))[workflow])


def kinds(setup: Setup, run_id: str) -> list[str]:
    with open_ledger(setup.ledger_url, clock=SystemClock()) as ledger:
        assert ledger.verify(run_id) is None
        return [event.kind for event in ledger.events(run_id)]


@contextmanager
def client(setup: Setup) -> Iterator[DBOSClient]:
    """DBOS's own way in from outside, as its users have it."""
    opened = DBOSClient(system_database_url=setup.ledger_url, dbos_system_schema=SCHEMA)
    try:
        yield opened
    finally:
        opened.destroy()


@contextmanager
def held(bench: Bench, setup: Setup) -> Iterator[tuple[str, Future[RunOutcome]]]:
    """A run whose second step holds its login until the file `go` is there."""
    run_id = new_run_id()
    text = WAITS.replace("__FOLDER__", str(bench.directory))
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(run, bench, setup, text, run_id=run_id)
        try:
            wait_for(lambda: bench.logins() or future.done(), "the step to hold its login")
            yield run_id, future
        finally:
            (bench.directory / "go").touch()


@every_engine
def test_a_run_ends_the_same_in_every_engine(bench: Bench, setup: Setup) -> None:
    outcome = run(bench, setup, FAN)
    assert set(outcome.steps.values()) == {StepState.SUCCEEDED}
    assert outcome.exit_code is ExitCode.DONE
    bench.assert_nothing_left()


@dbos_only
def test_steps_are_numbered_in_the_order_of_the_declaration(bench: Bench, setup: Setup) -> None:
    outcome = run(bench, setup, FAN)
    workflows = recorded(setup, "SELECT workflow_uuid, status, name FROM workflow_status")
    assert workflows == [(outcome.run_id, "SUCCESS", "orchestrator.run")]
    steps = recorded(setup, "SELECT function_name, output FROM operation_outputs ORDER BY function_id")
    assert steps == [(step, json.dumps("succeeded")) for step in ("slow", "quick", "after", "last")]


@dbos_only
def test_nothing_but_references_is_in_its_tables(bench: Bench, setup: Setup) -> None:
    outcome = run(bench, setup, LEAKY, inputs={"open": "canary-open", "hidden": "canary-hidden"})
    assert outcome.steps == {
        "keeps_an_output": StepState.SUCCEEDED,
        "gives_its_password_away": StepState.FAILED,
        "fails_with_a_message": StepState.FAILED,
    }
    assert "canary-open" in outcome.errors["fails_with_a_message"].message, "there was something to leak"
    columns = recorded(
        setup,
        "SELECT table_name, column_name, data_type FROM information_schema.columns "
        f"WHERE table_schema = '{SCHEMA}' AND data_type NOT IN ('bigint', 'integer', 'boolean')",
    )
    assert {("operation_outputs", "output"), ("workflow_output", "error")} <= {column[:2] for column in columns}
    stored = "\n".join(
        str(value)
        for table, column, kind in columns
        for shown in [f"encode(\"{column}\", 'escape')" if kind == "bytea" else f'"{column}"::text']
        for (value,) in recorded(setup, f'SELECT {shown} FROM "{table}"')
    )
    assert outcome.run_id in stored
    assert "gives_its_password_away" in stored
    assert "canary" not in stored
    assert "invalid input syntax" not in stored
    assert not holds_secret(stored.encode())
    assert "gASV" not in stored, "nothing is pickled"
    bench.assert_nothing_left()


@dbos_only
def test_a_run_that_is_cancelled_in_dbos_gives_its_credentials_back(bench: Bench, setup: Setup) -> None:
    with held(bench, setup) as (run_id, future), client(setup) as dbos:
        dbos.cancel_workflow(run_id)
        outcome = future.result(60)
    assert (outcome.state, outcome.exit_code) == (RunState.CANCELLED, ExitCode.INTERRUPTED)
    assert outcome.reason == "it was cancelled in DBOS"
    assert outcome.steps == {
        "first": StepState.SUCCEEDED,
        "held": StepState.CANCELLED,
        "last": StepState.CANCELLED,
    }
    assert kinds(setup, run_id)[-1] == "run.finished"
    assert (bench.directory / "marks").read_text().split() == ["first"]
    bench.assert_nothing_left()


@dbos_only
def test_a_run_that_ends_early_is_cancelled_in_dbos_too(bench: Bench, setup: Setup) -> None:
    text = WAITS.replace("__FOLDER__", str(bench.directory)).replace("agent: tester", "agent: tester\ntimeout: 2s")
    outcome = run(bench, setup, text)
    assert outcome.state is RunState.FAILED
    assert "the run took longer" in outcome.reason
    assert status_of(setup, outcome.run_id) == "CANCELLED"
    bench.assert_nothing_left()


@dbos_only
def test_dbos_carries_nothing_out_by_itself(bench: Bench, setup: Setup) -> None:
    """Whatever makes DBOS start one of our workflows, it finds nobody who would drive it."""
    (bench.directory / "go").touch()
    ended = run(bench, setup, WAITS.replace("__FOLDER__", str(bench.directory)))
    assert ended.exit_code is ExitCode.DONE
    (bench.directory / "go").unlink()
    before = kinds(setup, ended.run_id)
    with held(bench, setup), client(setup) as dbos:  # a living process that looks into DBOS's queue
        fork = dbos.fork_workflow(ended.run_id, 1).get_workflow_id()
        wait_for(lambda: status_of(setup, fork) == "ERROR", "DBOS to start the fork")
    (error,) = recorded(setup, f"SELECT error FROM workflow_output WHERE workflow_uuid = '{fork}'")
    assert error == ('{"!": "FenceLost"}',)
    assert kinds(setup, ended.run_id) == before
    assert (bench.directory / "marks").read_text().split() == ["first", "last", "first", "last"], "two runs, no more"


@dbos_only
def test_a_run_that_dbos_hands_to_somebody_else_is_finished_by_its_owner(bench: Bench, setup: Setup) -> None:
    """DBOS's opinion on who executes a workflow is none on who holds the fence."""
    with held(bench, setup) as (run_id, future), client(setup) as dbos:
        dbos.resume_workflow(run_id)
        wait_for(lambda: status_of(setup, run_id) == "ERROR", "DBOS to start it a second time")
        (bench.directory / "go").touch()
        outcome = future.result(60)
    assert outcome.exit_code is ExitCode.DONE
    assert kinds(setup, run_id).count("attempt.started") == 3
    assert (bench.directory / "marks").read_text().split() == ["first", "last"]
    bench.assert_nothing_left()


def environment(bench: Bench, **more: str) -> dict[str, str]:
    return bench.environment(ORCHESTRATOR_POLICY="allow-all", **more)


@contextmanager
def held_process(bench: Bench, ledger_url: str) -> Iterator[subprocess.Popen[str]]:
    """A process whose run `ours` holds its login; it is killed if it does not end."""
    path = bench.directory / "waits.yaml"
    path.write_text(WAITS.replace("__FOLDER__", str(bench.directory)))
    bench.install(load(path, actions=catalog).workflow)
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator.cli", "run", str(path), "--engine", "dbos", "--quiet", "--run-id", "ours"],
        env=environment(bench, ORCHESTRATOR_LEDGER_URL=ledger_url),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(lambda: bench.logins() or process.poll() is not None, "the step to hold its login")
        yield process
    finally:
        process.kill()
        process.communicate()


@dbos_only
def test_a_signal_ends_the_run_after_revoking_and_says_nothing_else(bench: Bench, setup: Setup) -> None:
    with held_process(bench, setup.ledger_url) as process:
        process.terminate()
        _, said = process.communicate(timeout=60)
    assert process.returncode == ExitCode.TERMINATED
    assert "dbos" not in said.lower()
    bench.assert_nothing_left()
    assert status_of(setup, "ours") == "CANCELLED"


def test_a_run_and_its_process_end_when_the_database_of_the_ledger_goes_away(
    bench: Bench, postgres_server: Callable[..., Postgres]
) -> None:
    """DBOS repeats what fails for want of a connection without end; a run with credentials must not wait for it."""
    server = postgres_server()
    with held_process(bench, server.dsn().reveal()) as process:
        server.stop()
        (bench.directory / "go").touch()
        _, said = process.communicate(timeout=90)
    assert process.returncode == ExitCode.UNREACHABLE
    assert "PostgreSQL ledger" in said
    assert bench.logins() == []
    assert bench.sessions() == []


class TestChoosing:
    def command(
        self, bench: Bench, *arguments: str, prelude: str = "", epilogue: str = "", **more: str
    ) -> subprocess.CompletedProcess[str]:
        program = (
            f"import sys; {prelude}\nfrom orchestrator.cli.main import main\ncode = main()\n{epilogue}\nsys.exit(code)"
        )
        return subprocess.run(
            [sys.executable, "-c", program, *arguments],
            env=environment(bench, **more),
            capture_output=True,
            text=True,
            timeout=90,
        )

    def workflow(self, bench: Bench) -> str:
        path = bench.directory / "true.yaml"
        path.write_text(
            "version: 1\nname: just_true\nagent: tester\nsteps:\n"
            "  only:\n    action: exec\n    with: { command: [/bin/true] }\n"
        )
        return str(path)

    @pytest.mark.parametrize("how", ["option", "setting"])
    def test_a_ledger_in_a_file_is_refused(self, bench: Bench, how: str) -> None:
        more = {"ORCHESTRATOR_ENGINE": "dbos"} if how == "setting" else {}
        option = ["--engine", "dbos"] if how == "option" else []
        ended = self.command(bench, "worker", "--no-listen", *option, **more)
        assert ended.returncode == 2
        assert "needs a ledger in PostgreSQL" in ended.stderr
        assert "ORCHESTRATOR_LEDGER_URL" in ended.stderr

    @dbos_only
    def test_without_the_extra_the_error_says_how_to_install_it(self, bench: Bench, setup: Setup) -> None:
        ended = self.command(
            bench,
            *("run", self.workflow(bench), "--engine", "dbos"),
            prelude="sys.modules['dbos'] = None",
            ORCHESTRATOR_LEDGER_URL=setup.ledger_url,
        )
        assert ended.returncode == 2
        assert "needs the package dbos" in ended.stderr
        assert "pip install 'credential-orchestrator[dbos]'" in ended.stderr

    @pytest.mark.parametrize("engine", ["local", "dbos"])
    def test_dbos_is_imported_only_where_it_was_chosen(self, bench: Bench, engine: str) -> None:
        with bench.setup(f"{engine}-postgresql") as setup:
            ended = self.command(
                bench,
                *("run", self.workflow(bench), "--quiet", "--engine", engine),
                epilogue="print('dbos' in sys.modules)",
                ORCHESTRATOR_LEDGER_URL=setup.ledger_url,
            )
        assert (ended.returncode, ended.stderr) == (0, "")
        assert ended.stdout.split() == [str(engine == "dbos")]
