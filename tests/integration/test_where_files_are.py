"""Relative paths of a workflow begin where its file is, whoever carries it out and from where."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from bench import Bench, Setup
from waiting import wait_for

from orchestrator.actions.catalog import catalog
from orchestrator.clock import SystemClock
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.states import StepState
from orchestrator.workflow.loader import load

WORKFLOW = """
version: 1
name: files
agent: tester
inputs: { wait: { type: string, default: "" } }
steps:
  script:
    action: exec
    with: { command: [./scripts/say.sh, "${{ workflow.dir }}", "${{ inputs.wait }}"], paths: { read: [data] } }
    outputs: [stdout]
  there:
    action: exec
    with: { command: [./say.sh, "${{ run.trigger }} ${{ run.started }} ${{ workflow.name }}"], cwd: scripts }
    outputs: [stdout]
  function:
    action: python
    with: { callable: "ours:told", path: [lib], arguments: { attempt: "${{ step.attempt }}", step: "${{ step.id }}" } }
    outputs: [said]
"""
SCRIPT = """#!/bin/sh
here=$(dirname "$0")
printf '%s|' "$1"
cat "$here/../data/file.txt" 2>/dev/null
while [ -n "$2" ] && [ -e "$2" ]; do sleep 0.1; done
"""
COMMAND = [sys.executable, "-m", "orchestrator.cli"]


@pytest.fixture
def project(tmp_path: Path, bench: Bench) -> Path:
    folder = tmp_path / "the project"
    for name in ("scripts", "data", "lib"):
        (folder / name).mkdir(parents=True)
    (folder / "w.yaml").write_text(WORKFLOW)
    (folder / "scripts" / "say.sh").write_text(SCRIPT)
    (folder / "scripts" / "say.sh").chmod(0o755)
    (folder / "data" / "file.txt").write_text("from the data")
    (folder / "lib" / "ours.py").write_text(
        "def told(attempt, step):\n    return {'said': f'{step} {attempt} {type(attempt).__name__}'}\n"
    )
    bench.install(load(folder / "w.yaml", actions=catalog).workflow)
    return folder


def command(bench: Bench, cwd: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = bench.environment(ORCHESTRATOR_POLICY="allow-all", **more)
    return subprocess.run([*COMMAND, *arguments], env=environment, cwd=cwd, capture_output=True, text=True, timeout=120)


def outputs(bench: Bench, run_id: str) -> dict[str, str]:
    with open_ledger(bench.config().ledger_url, clock=SystemClock()) as ledger:
        assert ledger.verify(run_id) is None
        found = {each.step: each for each in ledger.steps(run_id)}
        assert {each.state for each in found.values()} == {StepState.SUCCEEDED}
        kept = {name: each.outputs for name, each in found.items()}
    return {
        "script": kept["script"]["stdout"],  # type: ignore[index, call-overload, dict-item]
        "there": kept["there"]["stdout"],  # type: ignore[index, call-overload, dict-item]
        "function": kept["function"]["said"],  # type: ignore[index, call-overload, dict-item]
    }


def right(bench: Bench, project: Path, run_id: str, trigger: str) -> None:
    found = outputs(bench, run_id)
    with open_ledger(bench.config().ledger_url, clock=SystemClock()) as ledger:
        record = ledger.run(run_id)
        assert record is not None
        began = record.started_at.isoformat(timespec="microseconds").replace("+00:00", "Z")
    assert found["script"] == f"{project}|from the data"
    assert found["there"].startswith(f"{trigger} {began} files|")
    assert found["function"] == "function 1 int"


@pytest.mark.parametrize("named", ["absolute", "relative", "from elsewhere"])
def test_a_run_finds_its_files_from_wherever_it_is_started(
    bench: Bench, project: Path, named: str, tmp_path: Path
) -> None:
    cwd, file = {
        "absolute": (Path("/"), str(project / "w.yaml")),
        "relative": (project, "w.yaml"),
        "from elsewhere": (tmp_path, "the project/w.yaml"),
    }[named]
    done = command(bench, cwd, "run", file, "--run-id", "r1", "--trigger", "test")
    assert done.returncode == 0, done.stdout + done.stderr
    right(bench, project, "r1", "test")
    planned = command(bench, cwd, "plan", file, "--json")
    assert planned.returncode == 0, planned.stderr
    does = {step["step"]: step["does"] for step in json.loads(planned.stdout)["steps"]}
    assert does["script"]["program"] == str(project / "scripts" / "say.sh")
    assert does["script"]["paths"]["read"] == [str(project / "data")]
    assert does["there"]["cwd"] == str(project / "scripts")


def test_who_goes_on_with_a_run_finds_them_too(bench: Bench, project: Path, tmp_path: Path) -> None:
    waits = tmp_path / "waits"
    waits.touch()
    text = WORKFLOW.replace("paths: { read: [data] }", f"paths: {{ read: [data, '{tmp_path}'] }}")
    (project / "w.yaml").write_text(text)
    environment = bench.environment(ORCHESTRATOR_POLICY="allow-all")
    arguments = ["run", str(project / "w.yaml"), "--run-id", "r1", "--input", f"wait={waits}"]
    with (tmp_path / "out").open("w") as out:
        died = subprocess.Popen([*COMMAND, *arguments], env=environment, stdout=out, stderr=out)

    def others_ended() -> bool:
        with open_ledger(bench.config().ledger_url, clock=SystemClock()) as ledger:
            states = {each.step: each.state for each in ledger.steps("r1")}
        return states.get("script") is StepState.RUNNING and states.get("function") is StepState.SUCCEEDED

    wait_for(others_ended, "the script to wait")
    died.kill()
    died.wait()
    waits.unlink()
    done = command(bench, Path("/"), "runs", "resume", "r1")
    assert done.returncode == 0, done.stdout + done.stderr
    right(bench, project, "r1", "manual")


@pytest.mark.parametrize("setup", ["queue"], indirect=True)
def test_a_worker_finds_them_where_the_file_was_when_the_run_was_queued(
    bench: Bench, setup: Setup, project: Path
) -> None:
    more = {"ORCHESTRATOR_LEDGER_URL": setup.ledger_url}
    queued = command(bench, project, "queue", "add", "w.yaml", "--run-id", "q1", **more)
    assert queued.returncode == 0, queued.stderr
    environment = bench.environment(ORCHESTRATOR_POLICY="allow-all", **more)

    def over() -> bool:
        with open_ledger(setup.ledger_url, clock=SystemClock()) as ledger:
            record = ledger.run("q1")
            return record is not None and record.finished_at is not None

    with subprocess.Popen([*COMMAND, "worker", "--no-listen"], env=environment, cwd="/") as worker:
        wait_for(over, "the worker to carry it out")
        worker.terminate()
        assert worker.wait(timeout=60) == 0
    with open_ledger(setup.ledger_url, clock=SystemClock()) as ledger:
        found = {each.step: each for each in ledger.steps("q1")}
    assert {name: each.state.value for name, each in found.items()} == dict.fromkeys(
        ("script", "there", "function"), "succeeded"
    )
    assert found["script"].outputs == {"stdout": f"{project}|from the data"}
