"""Putting runs into the queue, and a worker of it, without a process of its own: starting one takes longer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from orchestrator.actions.catalog import catalog
from orchestrator.clock import SystemClock
from orchestrator.ledger.ids import new_run_id
from orchestrator.ledger.opening import open_ledger
from orchestrator.queue.lanes import limits_of
from orchestrator.queue.opening import shared_queue
from orchestrator.queue.shared import SharedQueue
from orchestrator.runs.types import RunRequest, Services
from orchestrator.scheduling.launcher import Launcher
from orchestrator.scheduling.queue.asking import queued as queued_of
from orchestrator.server.maintenance import maintained
from orchestrator.server.upkeep import upkeep
from orchestrator.server.working import working
from orchestrator.telemetry.metrics import Metrics
from orchestrator.workflow.inputs import bind_inputs
from orchestrator.workflow.loader import LoadedWorkflow, load


@contextmanager
def shared(ledger_url: str) -> Iterator[SharedQueue]:
    """The shared queue of a ledger."""
    with open_ledger(ledger_url, clock=SystemClock()) as ledger, shared_queue(ledger_url, ledger.queue) as queue:
        yield queue


def put(queue: SharedQueue, loaded: LoadedWorkflow, inputs: Mapping[str, Any] | None = None, **how: Any) -> str:
    """Put a run in; its id. `how` are the arguments of `SharedQueue.add`, and `run_id`."""
    run_id = how.pop("run_id", None) or new_run_id()
    bound = bind_inputs(loaded.workflow, inputs or {})
    put_request(queue, RunRequest(run_id=run_id, loaded=loaded, inputs=bound, trigger="queue"), **how)
    return run_id


def put_request(queue: SharedQueue, request: RunRequest, **how: Any) -> None:
    """Put in what was asked for."""
    loaded = request.loaded
    entry = queued_of(request, SystemClock().now())
    assert queue.add(entry, workflow=loaded.text, limits=limits_of(loaded.workflow), **how)


def queued(ledger_url: str, path: Path) -> str:
    """What `queue add` does; the id of the run."""
    with shared(ledger_url) as queue:
        return put(queue, load(path, actions=catalog))


@asynccontextmanager
async def worker_in_process(
    services: Services,
    launcher: Launcher,
    ledger_url: str,
    *,
    max_runs: int = 4,
    offered: Callable[[str], LoadedWorkflow | None] = lambda name: None,
) -> AsyncIterator[SharedQueue]:
    """A worker while inside, with all that it does beside its runs. One after the other: a process has one DBOS.

    `launcher` must be told of the services' events.
    """
    leaves = asyncio.Event()
    metrics = Metrics()
    with shared_queue(ledger_url, services.queue) as queue:
        worker = working(
            services,
            queue,
            launcher,
            ledger_url=ledger_url,
            max_runs=max_runs,
            offered=offered,
            stopped=leaves.is_set,
        )
        async with worker as hooks:
            beside = upkeep(services, launcher, metrics, sweep_interval=900.0, wake=queue.wake)
            async with maintained([*hooks, *beside], metrics):
                yield queue
                leaves.set()
                launcher.drop_waiting()
                await launcher.wait(launcher.active)
