"""Ending a run that comes to no end by itself.

One of this very process whose task is over although the ledger has no end of it:

that happens where the ledger was away when the end was to be recorded. Nobody else may do it: the process lives,
so nobody takes its runs over. Until it is done the run counts as going on, and blocks what waits for its place.

And one that nobody could even begin: it gets a beginning for the sake of its end.
"""

from __future__ import annotations

import asyncio

from orchestrator.errors import ExitCode, FenceLost, UsageError
from orchestrator.ledger.events import Event, RunFinished, RunStarted
from orchestrator.ledger.lease import OPEN
from orchestrator.ledger.states import RunState, StepState
from orchestrator.ledger.types import LeaseFilter
from orchestrator.recovery.open_leases import close_leases
from orchestrator.runs.outcomes import missing_ends
from orchestrator.runs.types import Services

_REASON = "its end could not be recorded when it came"


async def end_unbegun(services: Services, started: RunStarted, run_id: str, reason: str) -> bool:
    """Record that a run has failed before it began; False where it is another process's. Raises LedgerError."""
    if not await asyncio.to_thread(services.heartbeat.begin, run_id, digest=started.digest, text=None):
        return False
    try:
        fence = await services.ledger.begin_run(run_id, started)
    except UsageError:
        return False
    finished = RunFinished(state=RunState.FAILED, exit_code=int(ExitCode.STEP_FAILED), reason=reason)
    await services.ledger.append(run_id, fence, [finished])
    return True


async def end_run(services: Services, run_id: str) -> None:
    """Close what is open of the run and record that it has failed. Raises LedgerError; then it is to be tried again.

    Does nothing where it has ended by now, or is not ours any more.
    """
    reader, heartbeat = services.reader, services.heartbeat
    record = await asyncio.to_thread(reader.run, run_id)
    if record is None or record.state is not RunState.RUNNING:
        return
    if await asyncio.to_thread(heartbeat.store.owner, run_id) != heartbeat.runner_id:
        return
    fence = await services.ledger.take_over(run_id)
    try:
        left = await asyncio.to_thread(reader.leases, LeaseFilter(run=run_id, states=OPEN, limit=100_000))
        await close_leases(services, fence, left, _REASON)
        recorded = await asyncio.to_thread(reader.events, run_id)
        steps = await asyncio.to_thread(reader.steps, run_id)
        ends: list[Event] = []
        for step in steps:
            if step.state in (StepState.RUNNING, StepState.WAITING):
                ends += missing_ends(recorded, step.step, StepState.FAILED, _REASON)
        finished = RunFinished(state=RunState.FAILED, exit_code=int(ExitCode.UNREACHABLE), reason=_REASON)
        await services.ledger.append(run_id, fence, [*ends, finished])
    except FenceLost:
        return  # somebody else has it
