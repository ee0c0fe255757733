"""Work that is done again and again beside the runs: recovery, sweeps, samples for the metrics."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from orchestrator.errors import OrchestratorError
from orchestrator.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

Maintenance = tuple[float, Callable[[], Awaitable[None]]]
"""Seconds between the end of one turn and the beginning of the next, and what is done. The first turn is at once."""


@asynccontextmanager
async def maintained(hooks: Sequence[Maintenance], metrics: Metrics) -> AsyncIterator[None]:
    """Carry out the hooks while the context is open, each by itself.

    Leaving it cancels what is going on and waits until that has ended: a sweep gives its own login back.
    """
    tasks = [asyncio.create_task(_again(*hook, metrics), name=f"maintenance {name_of(hook[1])}") for hook in hooks]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _again(seconds: float, work: Callable[[], Awaitable[None]], metrics: Metrics) -> None:
    while True:
        try:
            await work()
        except OrchestratorError as error:
            metrics.failed(name_of(work))
            log.error("maintenance %s failed; it is tried again in %gs: %s", name_of(work), seconds, error)
        except Exception:  # the hook is tried again, and its failure is counted and told
            metrics.failed(name_of(work))
            log.exception("maintenance %s failed; it is tried again in %gs", name_of(work), seconds)
        await asyncio.sleep(seconds)


def name_of(work: Callable[[], Awaitable[None]]) -> str:
    """The name under which a hook is logged and counted."""
    return str(getattr(work, "__name__", type(work).__name__)).strip("_")
