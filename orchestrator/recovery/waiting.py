"""Runs that wait for somebody to agree: going on with them when that is decided, and ending them before."""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime

from orchestrator.errors import AgentBlocked, ExitCode, FenceLost, OrchestratorError, UsageError
from orchestrator.ledger.coordination.approvals import ApprovalStore
from orchestrator.ledger.events import Event, RunFinished, StepFinished
from orchestrator.ledger.states import RunState, StepState
from orchestrator.ledger.types import LedgerReader, LedgerWriter
from orchestrator.recovery.dead_runs import goes_on_here
from orchestrator.recovery.reopen import reopen
from orchestrator.runs.types import Services, TakenRun

log = logging.getLogger(__name__)


async def decided_runs(services: Services) -> list[TakenRun]:
    """The runs of services that waited, and of which something is decided: ours from now on. Raises LedgerError.

    Approved, refused or out of time: what that means is seen when the policy is asked again. Where another process is
    faster it has them.
    """
    taken = []
    for run_id in await asyncio.to_thread(services.approvals.store.decided_runs, services.clock.now()):
        record = await asyncio.to_thread(services.reader.run, run_id)
        if record is None or record.state is not RunState.WAITING:
            continue
        if not await asyncio.to_thread(goes_on_here, services, record):
            continue
        try:
            taken.append(await reopen(services, record, {}))
        except (AgentBlocked, FenceLost, UsageError) as error:
            log.debug("run %s is not resumed here: %s", run_id, error.message)
        except OrchestratorError as error:
            log.error("run %s cannot be resumed: %s", run_id, error.message, extra={"run": run_id})
    return taken


def decided_in_queue(services: Services) -> list[str]:
    """The runs that came through the queue and waited, and of which something is decided. Raises LedgerError."""
    decided = services.approvals.store.decided_runs(services.clock.now())
    return [run_id for run_id in decided if services.queue.holds(run_id)]


async def cancel_waiting(
    writer: LedgerWriter, reader: LedgerReader, approvals: ApprovalStore, run_id: str, reason: str, *, now: datetime
) -> None:
    """End a run that waits: nobody drives it, and nothing of it is open. Raises FenceLost where it goes on by now."""
    fence = await writer.take_over(run_id, ended=True)
    record = await asyncio.to_thread(reader.run, run_id)
    if record is None or record.state is not RunState.WAITING:
        raise FenceLost(f"run {run_id} does not wait any more", hint=f"see `orchestrator runs show {run_id}`")
    steps = await asyncio.to_thread(reader.steps, run_id)
    over = {step.step for step in steps if step.state is not StepState.WAITING}
    started = (await asyncio.to_thread(reader.events, run_id))[0]
    declared = started.data.get("steps")
    events: list[Event] = [
        StepFinished(step=str(step), state=StepState.CANCELLED, reason=reason)
        for step in (declared if isinstance(declared, list) else ())
        if step not in over
    ]
    finished = RunFinished(state=RunState.CANCELLED, exit_code=int(ExitCode.INTERRUPTED), reason=reason)
    await writer.append(run_id, fence, [*events, finished])
    await asyncio.to_thread(lambda: approvals.withdraw(run_id, now=now))
