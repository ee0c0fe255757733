"""Having a handed-over credential renewed: here, or by whichever process has handed it over.

The wish is in the ledger, where that process finds it with its next sign of life, and so is what came of it.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping

from orchestrator.actions.handover import Recipient, ended
from orchestrator.clock import Clock
from orchestrator.errors import LedgerError, NotRenewed, OrchestratorError, Refused, Unreachable
from orchestrator.ledger.coordination.runners import RunnerStore
from orchestrator.ledger.lease import LeaseState
from orchestrator.ledger.types import LeaseRecord
from orchestrator.redaction.redactor import Redactor
from orchestrator.tasks.reach import LOOK_SECONDS
from orchestrator.workflow.models.tools import Tool

log = logging.getLogger(__name__)

ANSWER_SECONDS = 12.0
"""How long another process may take to answer: its next sign of life, and as long as it asks Vault."""


def check_renewable(tools: Mapping[str, Tool], lease: LeaseRecord) -> None:
    """Raises NotRenewed where the file does not let a lease of these tools be renewed, or nobody has it any more.

    A call has other leases, too, which nobody was handed.
    """
    tool = tools.get(lease.step)
    if tool is None or not tool.renewable or lease.grant != tool.hand_over:
        raise NotRenewed("it cannot be renewed", hint="call the tool again when it has ended")
    if lease.state is not LeaseState.ISSUED:
        raise ended()


async def renewed_here(recipient: Recipient, redactor: Redactor) -> None:
    """Have it renewed by this process. Raises Refused, Unreachable and LedgerError, without any secret."""
    try:
        await recipient.renew()
    except NotRenewed:
        raise
    except Refused as error:
        raise Refused(f"it was not renewed: {redactor.redact(error.message)}", by=error.by) from None


async def renewed_elsewhere(runners: RunnerStore, run_id: str, clock: Clock) -> None:
    """Have it renewed by the process that has it. Raises what `renewed_here` raises."""
    if not await asyncio.to_thread(runners.request_renewal, run_id):
        raise ended()
    until = clock.monotonic() + ANSWER_SECONDS
    while (said := await asyncio.to_thread(runners.renewal, run_id)) == "":
        if clock.monotonic() >= until:
            raise Unreachable("whichever process has handed it over does not answer")
        await asyncio.sleep(LOOK_SECONDS)
    if said is not None:
        raise _as_error(said)


async def renewed_for_others(
    runners: RunnerStore, run_id: str, recipient: Recipient | None, redactor: Redactor
) -> None:
    """Do what another process has asked for, and say what came of it. Raises nothing that is foreseen."""
    why_not: str | None = None
    try:
        if recipient is None:
            raise ended()
        await renewed_here(recipient, redactor)
    except OrchestratorError as error:
        why_not = _as_words(error)
    try:
        await asyncio.to_thread(runners.answer_renewal, run_id, why_not)
    except LedgerError as error:  # it is asked for again with the next sign of life
        log.warning("what came of a renewal could not be said: %s", error.message, extra={"run": run_id})


def _as_words(error: OrchestratorError) -> str:
    by = error.by if isinstance(error, Refused) else ""
    return json.dumps([type(error).__name__ if isinstance(error, NotRenewed) else by, error.message, error.hint])


def _as_error(words: str) -> OrchestratorError:
    by, message, hint = json.loads(words)
    if by == NotRenewed.__name__:
        return NotRenewed(message, hint=hint)
    return Refused(message, by=by, hint=hint) if by else Unreachable(message)
