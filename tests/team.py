"""Processes of the orchestrator on one ledger."""

from __future__ import annotations

import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import psycopg
from bench import Bench, Setup
from fork_server import Forked, ForkServer
from waiting import wait_for

from orchestrator.actions.catalog import catalog
from orchestrator.clock import SystemClock
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.states import RunState
from orchestrator.ledger.types import LeaseFilter, LeaseRecord, RunRecord
from orchestrator.workflow.loader import load_text

FLOW = """
version: 1
name: {name}
agent: tester
{top}
steps:
  first:
    action: exec
    with: {{ command: [/bin/sh, -c, "echo first >> {marks}"], paths: {{ write: [{folder}] }} }}
  work:
    needs: [first]
    action: {action}
    grants:
      db: {{ kind: database, connection: support, role: feedback-read }}
    with: {with_}
    timeout: 60s
    {step}
  last:
    needs: [work]
    action: exec
    with: {{ command: [/bin/sh, -c, "echo last >> {marks}"], paths: {{ write: [{folder}] }} }}
"""
ONCE_SLOW = "[/bin/sh, -c, 'echo work >> {marks}; if [ $(grep -c work {marks}) = 1 ]; then sleep 50; fi']"


@dataclass
class Team:
    """Processes of the orchestrator on one ledger, and what can be asked about them."""

    bench: Bench
    setup: Setup
    marks: Path
    children: ForkServer
    processes: list[Forked | subprocess.Popen[str]] = field(default_factory=list)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """End every process that was started, also one that is stopped."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
        for process in self.processes:
            process.communicate(timeout=60)

    @property
    def ledger_url(self) -> str:
        return self.setup.ledger_url

    def environment(self) -> dict[str, str]:
        return {
            **self.bench.environment(),
            "ORCHESTRATOR_POLICY": "allow-all",
            "ORCHESTRATOR_LEDGER_URL": self.ledger_url,
            "ORCHESTRATOR_DEAD_AFTER": "4",
        }

    def flow(self, name: str = "taken_over", *, top: str = "", step: str = "", sql: str = "") -> Path:
        command = f"{{ command: {ONCE_SLOW.format(marks=self.marks)}, paths: {{ write: [{self.marks.parent}] }} }}"
        text = FLOW.format(
            name=name,
            top=top,
            marks=self.marks,
            folder=self.marks.parent,
            action="postgres.query" if sql else "exec",
            with_=f'{{ sql: "{sql}" }}' if sql else command,
            step=step,
        )
        self.bench.install(load_text(text, filename="flow.yaml", actions=catalog).workflow)
        path = self.bench.directory / f"{name}.yaml"
        path.write_text(text)
        return path

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.children.command(*arguments, environment=self.environment())

    def start(self, *arguments: str) -> Forked:
        process = self.children.start(*arguments, environment=self.environment())
        self.processes.append(process)
        return process

    def worker(self) -> Forked:
        return self.start("worker", "--no-listen")

    def run(self, run_id: str) -> RunRecord | None:
        with open_ledger(self.ledger_url, clock=SystemClock()) as ledger:
            return ledger.run(run_id)

    def leases(self, run_id: str) -> list[LeaseRecord]:
        with open_ledger(self.ledger_url, clock=SystemClock()) as ledger:
            assert ledger.verify(run_id) is None
            return list(ledger.leases(LeaseFilter(run=run_id)))

    def owner(self, run_id: str) -> str | None:
        with open_ledger(self.ledger_url, clock=SystemClock()) as ledger:
            return ledger.runners.owner(run_id)

    def driver(self, run_id: str) -> Forked | subprocess.Popen[str]:
        """The process that drives a run."""
        owner = wait_for(lambda: self.owner(run_id), "somebody to take the run")
        return next(process for process in self.processes if f"-{process.pid}-" in owner)

    def at_work(self) -> bool:
        return bool(self.bench.logins_of_steps()) and self.marks.exists() and "work" in self.marks.read_text()

    def in_dbos(self) -> dict[str, str]:
        """What DBOS says of its workflows."""
        with psycopg.connect(self.ledger_url) as session:
            query = "SELECT workflow_uuid, status FROM orchestrator_dbos.workflow_status"
            return {str(workflow): str(status) for workflow, status in session.execute(query)}

    def ended(self, run_id: str) -> RunRecord | None:
        record = self.run(run_id)
        return record if record is not None and record.state is not RunState.RUNNING else None
