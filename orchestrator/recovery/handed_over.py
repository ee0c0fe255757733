"""Going on with a run that is nobody's: its process died, what it left was closed, and the queue hands it to us."""

from __future__ import annotations

import asyncio

from orchestrator.ledger.types import RunRecord
from orchestrator.recovery.takeover import Recovered, Recovery
from orchestrator.runs.types import Services


async def take_nobodys(services: Services, record: RunRecord) -> Recovered | None:
    """Become the one who drives the run, and close what may still be open of it; None where it is somebody's.

    Where it cannot go on it is ended, and not `resumable`. Raises LedgerError.
    """
    heartbeat, run_id = services.heartbeat, record.run_id
    await asyncio.to_thread(heartbeat.enter)
    if not await asyncio.to_thread(heartbeat.store.adopt, run_id, heartbeat.runner_id):
        return None
    found: Recovered | None = None
    try:
        found = await Recovery(services, goes_on=lambda each: each.run_id == run_id).one(run_id)
        return found
    finally:
        if found is None or found.resumable is None:
            await asyncio.to_thread(lambda: heartbeat.store.release(run_id, dead=heartbeat.runner_id))
