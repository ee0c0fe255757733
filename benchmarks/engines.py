"""What driving a step itself costs, here and elsewhere: no credentials, steps that do nothing, one after another.

    python benchmarks/engines.py [--steps 200] [--rounds 3] [--with prefect,airflow]

Ours is the whole attempt (decision, events, hash chain, two durable commits a step) with a ledger in SQLite and in
PostgreSQL; `DBOS bare` is a workflow of bare asynchronous steps. All take turns against one embedded PostgreSQL,
and the table has the median of the rounds. Prefect (a flow in
process, with its ephemeral server, which is told of each task but not waited for) and Airflow (`dag.test()`)
are installed for it into temporary environments of their own, which takes minutes, and measured once; a
figure that cannot be taken is printed with the reason.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dbos import DBOS

from orchestrator.actions.base import Params, StepContext
from orchestrator.assembly import RunnerConfig, open_services
from orchestrator.devstack.postgres import Postgres
from orchestrator.jsontypes import JsonObject
from orchestrator.ledger.ids import new_run_id
from orchestrator.policy.engines.allow_all import AllowAllEngine
from orchestrator.redaction.redactor import Redactor
from orchestrator.runs.runner import Runner
from orchestrator.runs.types import RunRequest
from orchestrator.secret import Secret
from orchestrator.vault.config import TokenAuth, VaultConfig
from orchestrator.workflow.loader import LoadedWorkflow, load_text

AIRFLOW_STEPS = 20
"""Fewer: it is two orders of magnitude slower, and the figure is for each step."""

PREFECT = """
import sys, time
from prefect import flow, task

@task
def nothing(): pass

@flow
def steps(count):
    nothing()
    begin = time.perf_counter()
    for _ in range(count):
        nothing()
    return time.perf_counter() - begin

count = int(sys.argv[1])
print("seconds for each:", steps(count) / count)
"""

AIRFLOW = """
import sys, time
from datetime import datetime
from airflow.sdk import DAG, task

count = int(sys.argv[1])
with DAG("steps", schedule=None, start_date=datetime(2026, 1, 1)) as dag:
    before = None
    for number in range(count):
        @task(task_id=f"s{number}")
        def nothing(): pass
        this = nothing()
        if before is not None:
            before >> this
        before = this

if __name__ == "__main__":
    begin = time.perf_counter()
    dag.test()
    print("seconds for each:", (time.perf_counter() - begin) / count)
"""


class Nothing:
    """An action that does nothing, so that only what drives it is measured."""

    summary = "does nothing"
    params = Params

    def view(self, params: Any) -> JsonObject:
        return {}

    async def run(self, params: Any, context: StepContext) -> JsonObject:
        return {}


class Catalog:
    def names(self) -> list[str]:
        return ["nothing"]

    def params_of(self, name: str) -> type[Params] | None:
        return Params if name == "nothing" else None


def workflow(steps: int) -> LoadedWorkflow:
    lines = ["version: 1", "name: bench_engines", "agent: bench", "steps:"]
    for number in range(steps):
        lines += [f"  s{number}:", "    action: nothing"]
        if number:
            lines.append(f"    needs: [s{number - 1}]")
    return load_text("\n".join(lines), filename="bench.yaml", actions=Catalog())


async def ours(ledger_url: str, loaded: LoadedWorkflow) -> float:
    """Seconds for the whole run, without opening the ledger."""
    config = RunnerConfig(
        vault=VaultConfig("http://127.0.0.1:1", TokenAuth(Secret("never used"))),
        ledger_url=ledger_url,
        policy=AllowAllEngine(),
    )
    async with open_services(config, redactor=Redactor()) as services:
        runner = Runner(replace(services, action=lambda name: Nothing()))
        begin = time.perf_counter()
        outcome = await runner.run(RunRequest(run_id=new_run_id(), loaded=loaded, inputs={}))
        seconds = time.perf_counter() - begin
    assert outcome.exit_code == 0, outcome.reason
    return seconds


async def nothing() -> None:
    pass


@DBOS.workflow(name="bench.bare")
async def bare_workflow(steps: int) -> None:
    for _ in range(steps):
        await DBOS.run_step_async({}, nothing)


async def bare(url: str, steps: int) -> float:
    config = {"name": "bench", "system_database_url": url, "dbos_system_schema": "bench", "log_level": "ERROR"}
    DBOS(config=config)  # type: ignore[arg-type]
    DBOS.launch()
    try:
        begin = time.perf_counter()
        await bare_workflow(steps)
        return time.perf_counter() - begin
    finally:
        DBOS.destroy()


@dataclass(frozen=True)
class Figure:
    """What one engine takes, or why that is not known."""

    name: str
    milliseconds: list[float]
    reason: str = ""

    def line(self) -> str:
        if not self.milliseconds:
            return f"| {self.name} | not taken: {self.reason} | | |"
        return (
            f"| {self.name} | {statistics.median(self.milliseconds):.2f} "
            f"| {min(self.milliseconds):.2f} | {max(self.milliseconds):.2f} |"
        )


def here(folder: Path, steps: int, rounds: int) -> list[Figure]:
    """The engines that can be measured in this process."""
    loaded = workflow(steps)
    with Postgres(folder / "postgres") as server:
        url = server.dsn().reveal()
        measured: dict[str, Callable[[], float]] = {
            "ours, SQLite": lambda: asyncio.run(ours(f"sqlite:///{folder / 'ledger.db'}", loaded)),
            "ours, PostgreSQL": lambda: asyncio.run(ours(url, loaded)),
            "DBOS bare, PostgreSQL": lambda: asyncio.run(bare(url, steps)),
        }
        taken: dict[str, list[float]] = {name: [] for name in measured}
        for _ in range(rounds):
            for name, measure in measured.items():
                taken[name].append(measure() / steps * 1000)
    return [Figure(name, each) for name, each in taken.items()]


def installed(
    folder: Path, name: str, requirement: str, program: str, environment: dict[str, str], prepare: list[str], steps: int
) -> Figure:
    """The figure of a program in an environment made for it."""
    place = folder / name
    python = place / "bin" / "python"
    file = folder / f"{name}-program" / "program.py"
    file.parent.mkdir()
    file.write_text(program)
    variables = {**os.environ, **environment, "HOME": str(place), "PATH": f"{place / 'bin'}:{os.environ['PATH']}"}
    commands = [
        [sys.executable, "-m", "venv", str(place)],
        [str(python), "-m", "pip", "install", "--quiet", requirement],
        *([prepare] if prepare else []),
        [str(python), str(file), str(steps)],
    ]
    for command in commands:
        ended = subprocess.run(command, env=variables, cwd=folder, capture_output=True, text=True, timeout=1800)
        if ended.returncode != 0:
            last = (ended.stderr.strip() or ended.stdout.strip()).splitlines()[-1:]
            return Figure(requirement, [], f"{Path(command[0]).name} {command[1]}: {''.join(last)[:200]}")
    found = [line.partition(":")[2] for line in ended.stdout.splitlines() if line.startswith("seconds for each:")]
    shown = [str(python), "-m", "pip", "show", name if name != "airflow" else "apache-airflow"]
    version = subprocess.run(shown, env=variables, capture_output=True, text=True).stdout.splitlines()[1].split()[-1]
    return Figure(f"{requirement} {version}", [float(seconds) * 1000 for seconds in found])


def prefect(folder: Path, steps: int) -> Figure:
    environment = {
        "PREFECT_HOME": str(folder / "prefect-home"),
        "PREFECT_LOGGING_LEVEL": "ERROR",
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "DO_NOT_TRACK": "1",
    }
    return installed(folder, "prefect", "prefect", PREFECT, environment, [], steps)


def airflow(folder: Path, steps: int) -> Figure:
    home = folder / "airflow-home"
    home.mkdir()
    environment = {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "false",
        "AIRFLOW__CORE__DAGS_FOLDER": str(folder / "airflow-program"),
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR",
    }
    migrate = [str(folder / "airflow" / "bin" / "airflow"), "db", "migrate"]
    return installed(folder, "airflow", "apache-airflow", AIRFLOW, environment, migrate, min(steps, AIRFLOW_STEPS))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--steps", type=int, default=200)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--with", dest="others", default="", metavar="NAME,...", help="prefect, airflow")
    given = options.parse_args()
    others = {"prefect": prefect, "airflow": airflow}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        folder.chmod(0o755)
        figures = here(folder, given.steps, given.rounds)
        figures += [others[name](folder, given.steps) for name in given.others.split(",") if name]
    print("| engine | ms for each step (median) | least | most |\n| --- | --- | --- | --- |")
    for figure in figures:
        print(figure.line())


if __name__ == "__main__":
    main()
