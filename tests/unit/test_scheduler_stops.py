"""The scheduler's loop ends when it is cancelled, at whatever moment."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.clock import SystemClock
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
