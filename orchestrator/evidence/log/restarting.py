"""Going on after an older copy of the ledger was restored: the log has another name from then on, and says why.

Under its name of before it has signed more than the ledger now has. Whatever it signed next would contradict that, and
whoever keeps the checkpoints would be right to call the ledger set back.
"""

from __future__ import annotations

import asyncio

from orchestrator.errors import ExitCode
from orchestrator.evidence.log.checkpointing import Checkpointing
from orchestrator.ledger.events import LogRestarted, RunFinished, RunStarted
from orchestrator.ledger.ids import new_log_origin, new_run_id
from orchestrator.ledger.states import RunState
from orchestrator.ledger.storage.tables import RESTART_WORKFLOW
from orchestrator.ledger.types import LedgerWriter

TRIGGER_RESTART = "restart"


async def restart(ledger: LedgerWriter, checkpointing: Checkpointing, *, reason: str, by: str) -> LogRestarted:
    """Record that the log goes on under a new name, in a history of its own, rename it, and sign it.

    Raises EvidenceRejected where the ledger is not what it has itself signed: no copy that was restored is that.
    Raises VaultRefused and VaultUnavailable where it cannot be signed now, and LedgerError.
    """
    store = checkpointing.store
    await checkpointing.check()
    while await asyncio.to_thread(store.enter):
        pass
    restarted = LogRestarted(
        log=new_log_origin(),
        before=await asyncio.to_thread(store.origin),
        size=await asyncio.to_thread(store.size),
        reason=reason,
        by=by,
    )
    started = RunStarted(
        workflow=RESTART_WORKFLOW, digest="", agent=by, trigger=TRIGGER_RESTART, inputs={}, steps=(), reason=reason
    )
    finished = RunFinished(state=RunState.SUCCEEDED, exit_code=int(ExitCode.DONE))
    await ledger.begin_run(new_run_id(), started, [restarted, finished])
    await asyncio.to_thread(store.rename, restarted.log)
    await checkpointing.make()
    return restarted
