"""The Airflow recipe of docs/scheduling.md, as it stands there, with the real command; only Airflow is a stub."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shlex
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from bench import ROOT, Bench
from fork_server import orchestrator
from waiting import wait_for

from orchestrator.actions.catalog import catalog
from orchestrator.clock import SystemClock
from orchestrator.devstack.session import runtime_environment
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.states import StepState
from orchestrator.workflow.loader import load_text

DOCUMENT = (ROOT / "docs" / "scheduling.md").read_text()
RECIPE = re.findall(r"^```python\n(.*?)^```$", DOCUMENT.partition("\n## Airflow\n")[2], re.MULTILINE | re.DOTALL)
IN_DOCUMENT = "/etc/orchestrator/workflows/customer_feedback.yaml"
SETTINGS_IN_DOCUMENT = "/etc/orchestrator/settings.toml"
CONTEXT = {"dag.dag_id": "support", "task.task_id": "customer_feedback", "run_id": "manual__2026-06-01T07:00:00+00:00"}
"""What Airflow's template context has of one task, whatever the number of the try."""

RESUMABLE = """
version: 1
name: resumable
agent: tester
steps:
  first:
    action: exec
    with: { command: [/bin/sh, -c, "echo first >> __MARKS__"], paths: { write: [__FOLDER__] } }
  work:
    needs: [first]
    action: postgres.query
    grants:
      db: { kind: database, connection: support, role: feedback-read }
    with: { sql: "SELECT pg_advisory_xact_lock_shared(4711)" }
"""
WAITING = "SELECT pid FROM pg_stat_activity WHERE usename LIKE 'orc\\_%' AND wait_event = 'advisory'"


class FailedForGood(Exception):
    """In the place of AirflowFailException."""


@dataclass
class Operator:
    """In the place of the two operators: what the recipe gives them."""

    given: dict[str, Any]

    def rendered(self, template: str) -> str:
        """As Airflow renders it. An expression that is not known here fails."""
        return re.sub(r"\{\{ (.*?) \}\}", lambda match: CONTEXT[match[1]], template)


def recipe(monkeypatch: pytest.MonkeyPatch, workflow: Path) -> dict[str, Any]:
    """Run the document's code with this workflow; the operators that it makes, by the name of their class."""
    made: dict[str, Any] = {}

    def operator(name: str) -> Callable[..., Operator]:
        def make(**given: Any) -> Operator:
            made[name] = Operator(given)
            return made[name]

        return make

    stubs = {
        "airflow.sdk.exceptions": {"AirflowFailException": FailedForGood},
        "airflow.providers.standard.operators.bash": {"BashOperator": operator("bash")},
        "airflow.providers.standard.operators.python": {"PythonOperator": operator("python")},
    }
    for name, contents in stubs.items():
        parts = name.split(".")
        for length in range(1, len(parts) + 1):
            package = ".".join(parts[:length])
            monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
        vars(sys.modules[name]).update(contents)
    for block in RECIPE:
        assert IN_DOCUMENT in block
        assert SETTINGS_IN_DOCUMENT in block
        text = block.replace(IN_DOCUMENT, str(workflow)).replace(SETTINGS_IN_DOCUMENT, os.environ["TEST_SETTINGS"])
        exec(compile(text, "docs/scheduling.md", "exec"), {})
    return made


@pytest.fixture
def command_on_path(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`orchestrator` as Airflow's worker would find it: on the path, told by the environment."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "orchestrator"
    program.write_text(f'#!/bin/sh\nexec {shlex.join(orchestrator())} "$@"\n')
    program.chmod(0o755)
    for name in os.environ:
        if name.startswith(("ORCHESTRATOR_", "VAULT_")):
            monkeypatch.delenv(name)
    for name, value in runtime_environment(bench.provisioned, bench.directory).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("ORCHESTRATOR_POLICY_PATH")
    settings = tmp_path / "settings.toml"
    settings.write_text(f'policy_path = "{ROOT / "workflows" / "policies"}"\n')
    monkeypatch.setenv("TEST_SETTINGS", str(settings))
    monkeypatch.setenv("ORCHESTRATOR_CONFIG", str(tmp_path / "none.toml"))  # the recipe says where they are
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "home")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    yield
    bench.sql("TRUNCATE feedback_translation")


def python_task(monkeypatch: pytest.MonkeyPatch, workflow: Path) -> Callable[[], dict[str, Any]]:
    """One try of the Python task."""
    task = recipe(monkeypatch, workflow)["python"]
    arguments = {name: task.rendered(template) for name, template in task.given["op_kwargs"].items()}
    return lambda: task.given["python_callable"](**arguments)


def translations(bench: Bench) -> int:
    (count,) = bench.sql("SELECT count(*) FROM feedback_translation")
    return int(count)


@pytest.mark.usefixtures("command_on_path")
def test_a_second_try_of_a_task_that_was_done_tells_the_outcome_and_does_nothing_twice(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = python_task(monkeypatch, ROOT / "workflows" / "customer_feedback.yaml")
    before = translations(bench)
    first = task()
    done = translations(bench)
    assert done > before
    second = task()
    assert translations(bench) == done
    assert (first["state"], second["state"], first["run"]) == ("succeeded", "succeeded", second["run"])
    assert first["run"] == "airflow-support-customer_feedback-manual__2026-06-01T07:00:00+00:00"


@pytest.mark.usefixtures("command_on_path")
def test_the_shell_command_is_the_same_run_as_it_has_the_same_id(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe(monkeypatch, ROOT / "workflows" / "customer_feedback.yaml")
    command = made["bash"].rendered(made["bash"].given["bash_command"])
    for _ in range(2):
        environment = {**os.environ, **made["bash"].given["env"]} if made["bash"].given["append_env"] else {}
        done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    with open_ledger(bench.config().ledger_url, clock=SystemClock()) as ledger:
        (run,) = ledger.runs(workflow="customer_feedback", limit=10)
    assert (run.trigger, run.run_id) == (
        "airflow",
        made["python"].rendered(made["python"].given["op_kwargs"]["run_id"]),
    )


@pytest.mark.usefixtures("command_on_path")
def test_a_refusal_is_not_tried_again(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    denying = tmp_path / "denying"
    denying.mkdir()
    text = 'package orchestrator\nimport rego.v1\ndecision := {"allow": false, "reasons": ["not today"]}\n'
    (denying / "policy.rego").write_text(text)
    monkeypatch.setenv("ORCHESTRATOR_POLICY_PATH", str(denying))
    with pytest.raises(FailedForGood, match="runs show airflow-support"):
        python_task(monkeypatch, ROOT / "workflows" / "customer_feedback.yaml")()


@pytest.mark.usefixtures("command_on_path")
def test_a_try_after_a_crash_goes_on_with_the_run(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marks = tmp_path / "marks"
    workflow = tmp_path / "resumable.yaml"
    workflow.write_text(RESUMABLE.replace("__MARKS__", str(marks)).replace("__FOLDER__", str(marks.parent)))
    bench.install(load_text(workflow.read_text(), filename="test.yaml", actions=catalog).workflow)
    monkeypatch.setenv("ORCHESTRATOR_POLICY", "allow-all")
    task = python_task(monkeypatch, workflow)

    def crash() -> None:
        wait_for(lambda: bench.sql(WAITING), "the step to wait for the lock")
        with open_ledger(bench.config().ledger_url, clock=SystemClock()) as ledger:
            (runner,) = ledger.runners.all()
        os.kill(json.loads(runner.process)["pid"], signal.SIGKILL)

    worker = multiprocessing.get_context("fork").Process(target=task)
    with psycopg.connect(bench.info.support_dsn.reveal()) as session:
        session.execute("SELECT pg_advisory_xact_lock(4711)")
        worker.start()
        crash()
        worker.join(60)
    assert worker.exitcode == -signal.SIGKILL
    again = task()
    assert again["state"] == "succeeded"
    assert marks.read_text() == "first\n"
    with open_ledger(bench.config().ledger_url, clock=SystemClock()) as ledger:
        steps = {record.step: (record.state, record.attempts) for record in ledger.steps(again["run"])}
    assert steps == {"first": (StepState.SUCCEEDED, 1), "work": (StepState.SUCCEEDED, 2)}
