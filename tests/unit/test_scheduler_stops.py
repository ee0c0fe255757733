"""The scheduler's loop ends when it is cancelled, at whatever moment, and forgets nobody who rests."""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.actions.catalog import catalog
from orchestrator.clock import SystemClock
from orchestrator.errors import LedgerError
from orchestrator.ledger.coordination.schedules import open_schedules
from orchestrator.scheduling import scheduler as module
from orchestrator.scheduling.folder import WorkflowFolder
from orchestrator.scheduling.scheduler import Scheduler


@pytest.mark.parametrize("turns", range(6))
async def test_a_cancellation_that_comes_together_with_a_wake_is_not_lost(turns: int) -> None:
    services: Any = SimpleNamespace(clock=SystemClock())
    means: Any = SimpleNamespace(services=services)
    folder: Any = None
    scheduler = Scheduler(means, folder)

    async def sleep_twice() -> None:
        await scheduler._sleep()
        scheduler._wake.clear()
        await scheduler._sleep()

    sleeping = asyncio.create_task(sleep_twice())
    for _ in range(3):
        await asyncio.sleep(0)
    scheduler._wake.set()
    for _ in range(turns):  # of the event loop, until the sleeper has noticed
        await asyncio.sleep(0)
    sleeping.cancel()
    async with asyncio.timeout(5):
        with pytest.raises(asyncio.CancelledError):
            await sleeping


class Entry:
    """Due until it was carried out, which the ledger keeps it from at first."""

    waiting = ()

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.done = False

    def next_due(self) -> datetime | None:
        return None if self.done else SystemClock().now() - timedelta(seconds=1)

    async def step(self) -> None:
        if self.failures:
            self.failures -= 1
            raise LedgerError("away")
        self.done = True


async def test_a_workflow_that_rests_after_a_failure_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY", 0.05)
    clock = SystemClock()
    means: Any = SimpleNamespace(
        services=SimpleNamespace(clock=clock), metrics=SimpleNamespace(failed=lambda what: None)
    )
    folder: Any = None
    scheduler = Scheduler(means, folder)
    entry: Any = Entry(failures=2)
    scheduler._entries["nightly"] = entry
    scheduler._plan("nightly")
    async with asyncio.timeout(10):
        while not entry.done:
            scheduler._wake.clear()
            scheduler._start_due(clock.now())
            await scheduler._sleep()


SCHEDULED = (
    "version: 1\nname: {}\nagent: a\nschedule: {{ every: 1h }}\n"
    "steps: {{ s: {{ action: exec, with: {{ command: [/bin/true] }} }} }}\n"
)
BY_HAND = SCHEDULED.replace("schedule: {{ every: 1h }}\n", "")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ((SCHEDULED.format("a"), BY_HAND.format("b")), "2 workflows in {}, 1 with a schedule"),
        ((BY_HAND.format("b"),), "1 workflow in {}, 0 with a schedule"),
        ((), "0 workflows in {}, 0 with a schedule"),
        (None, None),
    ],
)
async def test_the_start_tells_how_many_workflows_there_are_and_how_many_have_a_schedule(
    files: tuple[str, ...] | None, said: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker has no folder, and says nothing of one."""
    caplog.set_level(logging.INFO)
    flows = tmp_path / "flows"
    flows.mkdir()
    for number, text in enumerate(files or ()):
        (flows / f"{number}.yaml").write_text(text)
    with open_schedules(f"sqlite:///{tmp_path / 'ledger.db'}") as store:
        context: Any = SimpleNamespace(
            services=SimpleNamespace(clock=SystemClock()),
            store=store,
            metrics=SimpleNamespace(loaded=lambda workflows, invalid: None),
            launcher=SimpleNamespace(drop_waiting=lambda: None),
        )
        scheduler = Scheduler(context, WorkflowFolder(None if files is None else flows, catalog))
        running = asyncio.create_task(scheduler.run())
        async with asyncio.timeout(10):
            while not scheduler.loaded:
                await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await scheduler.stop()
    told = [each.message for each in caplog.records if each.name == "orchestrator.scheduling.scheduler"]
    assert told == ([] if said is None else [said.format(flows)])
