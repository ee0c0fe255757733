"""The ids of scheduled runs and of sweeps: one for each time, known to nobody before, and of no use to a thief."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from bench import Bench, Setup
from fork_server import ForkServer
from test_serve import Served, served_on
from waiting import wait_for

from orchestrator.assembly import open_services
from orchestrator.clock import SystemClock
from orchestrator.ledger.events import RunFinished, RunStarted
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.reading.queries import SWEEP_WORKFLOW, TRIGGER_SWEEP
from orchestrator.ledger.states import RunState
from orchestrator.ledger.storage.times import time_to_text
from orchestrator.recovery.fire_ids import Occasion
from orchestrator.recovery.orphans import sweep_at, sweep_once
from orchestrator.redaction.redactor import Redactor

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)


@pytest.fixture
def served(bench: Bench, children: ForkServer) -> Any:
    with served_on(bench, children) as served:
        yield served


@pytest.mark.parametrize("setup", ["sqlite", "postgresql"], indirect=True)
def test_all_processes_find_the_same_id_for_a_time_and_another_for_every_other(setup: Setup) -> None:
    def asked(_: int) -> str:
        with open_ledger(setup.ledger_url, clock=SystemClock()) as ledger:
            return ledger.runners.run_of_fire("w", "schedule", NOON)

    open_ledger(setup.ledger_url, clock=SystemClock()).close()
    with ThreadPoolExecutor(8) as pool:
        [run_id] = set(pool.map(asked, range(16)))
    with open_ledger(setup.ledger_url, clock=SystemClock()) as ledger:
        find = ledger.runners.run_of_fire
        others = {
            find("v", "schedule", NOON),
            find("w", "request", NOON),
            find("w", "schedule", NOON + timedelta(hours=1)),
            run_id,
        }
        assert len(others) == 4
        assert find("w", "schedule", NOON) == run_id
        another = find("w", "schedule", NOON, instead_of=run_id)
        assert another != run_id
        assert find("w", "schedule", NOON, instead_of=run_id) == another, "once for all who found the first one taken"


def test_no_id_follows_from_what_others_can_know(tmp_path: Path) -> None:
    ids = set()
    for name in ("one.db", "two.db"):
        with open_ledger(str(tmp_path / name), clock=SystemClock()) as ledger:
            ids.add(ledger.runners.run_of_fire("w", "schedule", NOON))
    assert len(ids) == 2
    assert len({run_id[:14] for run_id in ids}) == 1, "they still sort by the time that they are of"


async def begun(bench: Bench, run_id: str, *, workflow: str, trigger: str) -> None:
    started = RunStarted(workflow=workflow, digest="", agent="a", trigger=trigger, inputs={}, steps=())
    async with open_ledger(bench.config().ledger_url, clock=SystemClock()) as ledger:
        fence = await ledger.begin_run(run_id, started)
        await ledger.append(run_id, fence, [RunFinished(state=RunState.SUCCEEDED, exit_code=0)])


@pytest.mark.parametrize(
    ("workflow", "trigger", "earlier"),
    [("other", "manual", 0), ("other", "schedule", 0), ("often", "manual", 0), ("often", "schedule", 3600)],
    ids=["another workflow", "another one's schedule", "another trigger", "another time"],
)
def test_a_time_whose_id_was_taken_by_a_foreign_run_is_run_all_the_same_and_it_is_told(
    served: Served, workflow: str, trigger: str, earlier: int
) -> None:
    """Whoever could not only guess the coming ids but set them."""
    bench = served.bench
    asyncio.run(begun(bench, "taken", workflow=workflow, trigger=trigger))
    served.put("often", "{ every: 2s }")
    now = int(time.time()) // 2 * 2
    with closing(sqlite3.connect(bench.directory / "ledger.db")) as connection, connection:
        if earlier:
            long_ago = time_to_text(datetime.fromtimestamp(now - earlier, UTC))
            connection.execute("UPDATE run SET started_at = ? WHERE run_id = 'taken'", (long_ago,))
        for number in range(150):
            at = time_to_text(datetime.fromtimestamp(now + 2 * number, UTC))
            connection.execute("INSERT INTO fire VALUES ('often', 'schedule', ?, 'taken')", (at,))
    served.start()
    wait_for(lambda: len(served.runs("often", RunState.SUCCEEDED)) >= (4 if workflow == "often" else 2), "runs", 90)
    assert served.stop() == 0
    told = [one for one in served.records() if "was taken by a run of" in str(one)]
    assert told
    assert {one["level"].upper() for one in told} == {"WARNING"}
    assert not [one for one in served.records() if "is skipped: taken" in str(one)]
    runs = [run for run in served.runs("often") if run.run_id != "taken"]
    with open_ledger(bench.config().ledger_url, clock=SystemClock()) as ledger:
        assert len({run.run_id for run in runs}) == len(runs) >= 2
        assert all(ledger.verify(run.run_id) is None for run in runs)


async def test_a_sweep_whose_id_was_taken_is_made_all_the_same_and_it_is_told(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_services(bench.config(), redactor=Redactor()) as services:
        occasion = sweep_at(services.clock.now(), 900)
        taken = occasion.run_id(services)
        await begun(bench, taken, workflow="other", trigger="manual")
        with caplog.at_level(logging.INFO):
            swept = await sweep_once(services, occasion)
        assert swept is not None
        assert [each.connection for each in swept] == ["support"]
        assert [record.levelname for record in caplog.records if "was taken by a run of" in record.getMessage()] == [
            "WARNING"
        ]
        assert await sweep_once(services, occasion) is None, "one of ours is none of a stranger's"
        assert len(services.reader.runs(workflow=SWEEP_WORKFLOW)) == 1


async def test_a_run_that_is_just_being_begun_elsewhere_is_left_alone(bench: Bench) -> None:
    async with open_services(bench.config(), redactor=Redactor()) as services:
        occasion = Occasion("w", TRIGGER_SWEEP, services.clock.now())
        run_id = occasion.run_id(services)
        assert occasion.another_id(services, run_id) is None
        await begun(bench, run_id, workflow="w", trigger=TRIGGER_SWEEP)
        assert occasion.another_id(services, run_id) is None
        assert occasion.run_id(services) == run_id
