"""Making a run that was interrupted run again: by one process, under a new fence, with nothing of it open."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from orchestrator.errors import FenceLost, NotAsRecorded, UsageError
from orchestrator.jsontypes import JsonValue
from orchestrator.ledger.events import Event, RunResumed
from orchestrator.ledger.lease import OPEN
from orchestrator.ledger.types import LeaseFilter, RunRecord
from orchestrator.recovery.dead_runs import cut_short, request_of
from orchestrator.recovery.open_leases import close_leases
from orchestrator.runs.types import RunRequest, Services, TakenRun

_TRIES = 5
"""How often the fence is taken anew where somebody who closes left-over leases takes it at the same time."""


async def reopen(
    services: Services, record: RunRecord, secrets: Mapping[str, JsonValue], *, request: RunRequest | None = None
) -> TakenRun:
    """Become the one who drives an interrupted run, and close what is still open of it.

    `request` is what was asked for, for whoever has it already. Raises UsageError where another process is faster, or
    where it cannot go on as it was begun (a secret input or an action is missing): then it stays interrupted. Raises
    FenceLost or LedgerError.
    """
    store, run_id = services.heartbeat.store, record.run_id
    if request is None:
        try:
            request = await asyncio.to_thread(request_of, services, record, secrets)
        except NotAsRecorded as error:
            raise NotAsRecorded(f"run {run_id} cannot be resumed: {error.message}", hint=error.hint) from error
    await asyncio.to_thread(services.heartbeat.enter)
    if not await asyncio.to_thread(store.reopen, run_id, services.heartbeat.runner_id):
        raise UsageError(f"run {run_id} is being resumed by another process")
    cut = await asyncio.to_thread(cut_short, services.reader, run_id)
    resumed = RunResumed(runner=services.heartbeat.runner_id, reason=record.reason)
    fence = await _take_fence(services, run_id, [resumed, *cut.not_repeated(request.loaded)])
    left = await asyncio.to_thread(services.reader.leases, LeaseFilter(run=run_id, states=OPEN, limit=100_000))
    if left:
        await close_leases(services, fence, left, "the run is resumed")
    steps = await asyncio.to_thread(services.reader.steps, run_id)
    return TakenRun(request=request, fence=fence, steps=tuple(steps))


async def _take_fence(services: Services, run_id: str, events: Sequence[Event]) -> int:
    """The fence of the run, with these events recorded under it: from then on nobody takes it for an ended one."""
    for _ in range(_TRIES - 1):
        fence = await services.ledger.take_over(run_id)
        try:
            await services.ledger.append(run_id, fence, events)
        except FenceLost:
            continue
        return fence
    fence = await services.ledger.take_over(run_id)
    await services.ledger.append(run_id, fence, events)
    return fence
