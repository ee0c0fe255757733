"""Several schedulers that put what is due into the queue: once over all of them, and with `overlap` as it says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import pytest
from bench import Bench, Setup
from fork_server import Forked, ForkServer
from queued import shared
from team import Team
from waiting import wait_for

from orchestrator.actions.catalog import catalog
from orchestrator.clock import SystemClock
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.states import RunState
from orchestrator.ledger.types import RunRecord
from orchestrator.queue.tables import QueueState
from orchestrator.workflow.loader import load_text

pytestmark = pytest.mark.parametrize("setup", ["queue"], indirect=True)

FLOW = """
version: 1
name: due
agent: tester
schedule: {{ every: {every}, overlap: {overlap} }}
steps:
  mark:
    action: exec
    with: {{ command: [/bin/sh, -c, "{command}"] }}
    timeout: 50s
"""


class Schedulers(Team):
    """Several `serve` on one folder, and workers."""

    seen: ClassVar[set[str]] = set()

    def put(self, *, overlap: str, command: str = "true", every: str = "1s") -> None:
        text = FLOW.format(overlap=overlap, command=command, every=every)
        self.bench.install(load_text(text, filename="due.yaml", actions=catalog).workflow)
        folder = self.bench.directory / "workflows"
        folder.mkdir()
        (folder / "due.yaml").write_text(text)

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "ORCHESTRATOR_QUEUE": "true"}

    def scheduler(self) -> Forked:
        return self.start("serve", str(self.bench.directory / "workflows"), "--no-listen")

    def runs(self, state: RunState | None = None) -> list[RunRecord]:
        with open_ledger(self.ledger_url, clock=SystemClock()) as ledger:
            return list(ledger.runs(workflow="due", state=state, limit=1000))

    def handled(self) -> set[str]:
        """Up to which time what was due is decided, at each look so far."""
        with open_ledger(self.ledger_url, clock=SystemClock()) as ledger, ledger._engine.connect() as connection:
            self.seen |= {str(row[0]) for row in connection.exec_driver_sql("SELECT handled FROM schedule")}
        return self.seen

    def fires(self) -> dict[str, str]:
        """The run of each time that came."""
        with open_ledger(self.ledger_url, clock=SystemClock()) as ledger, ledger._engine.connect() as connection:
            return {
                str(row[0]): str(row[1])
                for row in connection.exec_driver_sql("SELECT at, run_id FROM fire WHERE workflow = 'due'")
            }


@pytest.fixture
def team(bench: Bench, setup: Setup, tmp_path: Path, children: ForkServer) -> Iterator[Schedulers]:
    with Schedulers(bench, setup, tmp_path / "marks", children) as team:
        yield team


def test_each_time_is_run_once_over_all_schedulers_and_by_a_worker(team: Schedulers) -> None:
    team.put(overlap="allow")
    schedulers = [team.scheduler(), team.scheduler(), team.scheduler()]
    worker = team.worker()
    wait_for(lambda: len(team.runs(RunState.SUCCEEDED)) >= 6, "six runs", 60)
    victim, *others = schedulers
    victim.kill()
    before = len(team.runs())
    wait_for(lambda: len(team.runs(RunState.SUCCEEDED)) >= before + 4, "four more runs", 60)
    for each in others:
        each.terminate()
        assert each.wait(40) == 0
    with shared(team.ledger_url) as queue:
        wait_for(lambda: not queue.list({QueueState.WAITING, QueueState.RUNNING}), "the queue to be empty", 30)
    runs = team.runs()
    assert {run.trigger for run in runs} == {"schedule"}
    assert Counter(run.state for run in runs) == {RunState.SUCCEEDED: len(runs)}
    fires = team.fires()
    last = max(fires)  # where a scheduler was told to stop between drawing its id and putting it in
    assert {run.run_id for run in runs} | {fires[last]} == set(fires.values()), "one run for each time, and no other"
    assert worker.poll() is None


def test_what_waits_in_the_queue_counts_as_going_on(team: Schedulers) -> None:
    team.put(overlap="forbid", command="sleep 4")
    team.scheduler()
    team.scheduler()

    def queued() -> int:
        with shared(team.ledger_url) as queue:
            return len(queue.list({QueueState.WAITING, QueueState.RUNNING}))

    wait_for(lambda: queued() == 1, "the first time", 30)
    begin = len(team.handled())
    wait_for(lambda: len(team.handled()) >= begin + 3, "times to pass", 30)
    assert queued() == 1
    team.worker()
    wait_for(lambda: len(team.runs()) >= 2, "the next one", 60)
    runs = sorted(team.runs(), key=lambda run: run.started_at)
    assert all(
        earlier.finished_at is not None and earlier.finished_at <= later.started_at for earlier, later in pairwise(runs)
    )


def test_a_run_at_a_worker_is_replaced_by_the_next_one(team: Schedulers) -> None:
    team.put(overlap="replace", command="sleep 45", every="8s")
    team.worker()
    team.scheduler()
    ended = wait_for(lambda: team.runs(RunState.CANCELLED), "the first to be cancelled", 60)
    assert ended[0].reason.startswith("replaced by the run ")
    successor = ended[-1].reason.rpartition(" ")[2]
    wait_for(lambda: team.run(successor), "its successor to begin", 60)
