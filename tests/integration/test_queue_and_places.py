"""Queued runs that wait for leases of a busy connection take no place of a worker: what needs another goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from bench import Bench, Setup
from fork_server import ForkServer
from queued import put, shared
from test_shared_queue import Crew
from waiting import wait_for

from orchestrator.actions.catalog import catalog
from orchestrator.ledger.states import RunState
from orchestrator.workflow.loader import load_text

pytestmark = pytest.mark.parametrize("setup", ["queue"], indirect=True)

BUSY = """
version: 1
name: busy{number}
agent: tester
steps:
  work:
    action: postgres.query
    grants: {{ db: {{ kind: database, connection: support, role: feedback-read }} }}
    with: {{ sql: SELECT pg_sleep(1.5) }}
    timeout: 120s
"""


class Limited(Crew):
    """A crew that may have one lease of the connection open at once."""

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "ORCHESTRATOR_CONNECTION_LEASES__SUPPORT": "1"}

    def held(self) -> int:
        return len(self.bench.logins_of_steps())


@pytest.fixture
def crew(bench: Bench, setup: Setup, tmp_path: Path, children: ForkServer) -> Iterator[Limited]:
    with Limited(bench, setup, tmp_path / "marks", children) as crew:
        yield crew


def test_what_waits_for_a_busy_connection_holds_up_nothing_that_needs_another(crew: Limited) -> None:
    idle = crew.loaded("idle")
    busy = [load_text(BUSY.format(number=number), filename="busy.yaml", actions=catalog) for number in (1, 2)]
    for each in busy:
        crew.bench.install(each.workflow)
    with shared(crew.ledger_url) as queue:
        waiting = [put(queue, busy[number % 2]) for number in range(10)]
        for _ in range(2):
            crew.start("worker", "--no-listen", "--max-runs", "2")
        wait_for(lambda: len(crew.told("leases", "list", "--state", "waiting")) >= 2, "runs to wait", 30)
        quick = [put(queue, idle, {"mark": str(number)}) for number in range(12)]
    most = 0

    def all_quick_ended() -> bool:
        nonlocal most
        most = max(most, crew.held())
        return all(crew.ended(run) for run in quick)

    wait_for(all_quick_ended, "what needs no lease", 30)
    ended = [run for run in waiting if crew.ended(run)]
    assert len(ended) < len(waiting), "they went on while the others waited"
    line = crew.told("leases", "list", "--state", "waiting")
    assert {each["connection"] for each in line} == {"support"}
    assert len(line) <= 8, "a worker takes no more runs of a workflow of which one waits"

    def all_ended() -> bool:
        nonlocal most
        most = max(most, crew.held())
        return all(crew.ended(run) for run in waiting)

    wait_for(all_ended, "all of the busy ones", 90)
    assert most == 1
    assert {crew.ended(run).state for run in (*waiting, *quick)} == {RunState.SUCCEEDED}  # type: ignore[union-attr]
    assert crew.told("leases", "list", "--state", "waiting") == []
