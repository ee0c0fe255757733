"""Making a run that was interrupted run again: by one process, under a new fence, with nothing of it open."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from orchestrator.errors import FenceLost, NotAsRecorded, UsageError
from orchestrator.jsontypes import JsonValue
from orchestrator.ledger.events import RunResumed
from orchestrator.ledger.lease import OPEN
from orchestrator.ledger.types import LeaseFilter, RunRecord
from orchestrator.recovery.dead_runs import cut_short, request_of
from orchestrator.recovery.open_leases import close_leases
from orchestrator.runs.types import RunRequest, Services, TakenRun


async def reopen(
    services: Services, record: RunRecord, secrets: Mapping[str, JsonValue], *, request: RunRequest | None = None
) -> TakenRun:
    """Become the one who drives an interrupted run, and close what is still open of it.

    `request` is what was asked for, for whoever has it already. Raises UsageError where another process is faster, or
    where it cannot go on as it was begun (a secret input or an action is missing): then it stays interrupted. Raises
    AgentBlocked, FenceLost or LedgerError.
    """
    run_id, runner_id = record.run_id, services.heartbeat.runner_id
    if request is None:
        try:
            request = await asyncio.to_thread(request_of, services, record, secrets)
        except NotAsRecorded as error:
            raise NotAsRecorded(f"run {run_id} cannot be resumed: {error.message}", hint=error.hint) from error
    await asyncio.to_thread(services.heartbeat.enter)
    try:
        fence = await services.ledger.resume(run_id, RunResumed(runner=runner_id, reason=record.reason))
    except FenceLost as error:
        raise UsageError(f"run {run_id} is being resumed by another process") from error
    cut = await asyncio.to_thread(cut_short, services.reader, run_id)
    if events := cut.not_repeated(request.loaded):
        await services.ledger.append(run_id, fence, events)
    left = await asyncio.to_thread(services.reader.leases, LeaseFilter(run=run_id, states=OPEN, limit=100_000))
    if left:
        await close_leases(services, fence, left, "the run is resumed")
    steps = await asyncio.to_thread(services.reader.steps, run_id)
    return TakenRun(request=request, fence=fence, steps=tuple(steps))
