"""What a call came to, as whoever called is told."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from orchestrator.errors import OrchestratorError
from orchestrator.grants.credential import Credential
from orchestrator.jsontypes import JsonObject
from orchestrator.ledger.lease import OPEN
from orchestrator.ledger.states import RunState
from orchestrator.ledger.types import LeaseFilter, LeaseRecord, LedgerReader
from orchestrator.runs.types import RunOutcome


class CallState(StrEnum):
    """How a call stands."""

    DONE = "done"
    """Its action has succeeded, or its credential was given back or ran out."""
    HANDED_OVER = "handed_over"
    """The agent has the credential."""
    RUNNING = "running"
    """It is being carried out, here or elsewhere."""
    WAITING = "waiting"
    """Somebody has to agree first: ask again with the same key."""
    REFUSED = "refused"
    FAILED = "failed"
    CANCELLED = "cancelled"


_STATES = {
    RunState.SUCCEEDED: CallState.DONE,
    RunState.RUNNING: CallState.RUNNING,
    RunState.WAITING: CallState.WAITING,
    RunState.REFUSED: CallState.REFUSED,
    RunState.FAILED: CallState.FAILED,
    RunState.INTERRUPTED: CallState.FAILED,
    RunState.CANCELLED: CallState.CANCELLED,
}


@dataclass(frozen=True, slots=True)
class HandedOver:
    """A credential that the agent has now. The lease tells its end and its scope; nothing of it is secret."""

    credential: Credential
    lease: LeaseRecord

    @property
    def expires_at(self) -> datetime:
        """When it ends at the latest."""
        assert self.lease.expires_at is not None
        return self.lease.expires_at


@dataclass(frozen=True, slots=True, kw_only=True)
class CallResult:
    """What the caller is told. `reason` says why it did not succeed; `approval` is waited for."""

    call_id: str
    tool: str
    state: CallState
    output: JsonObject | None = None
    handed: HandedOver | None = None
    held: LeaseRecord | None = None
    """On record, of the credential that was handed over, also when that was told before."""
    reason: str = ""
    error: OrchestratorError | None = None
    approval: str = ""
    confirmed: bool = True
    """Whether everything that was issued for it is gone for certain; not so while it is held."""


def result_of(outcome: RunOutcome, tool: str) -> CallResult:
    """From how the run came out that the call was."""
    error = outcome.errors.get(tool) or next(iter(outcome.errors.values()), None)
    state = _STATES[outcome.state]
    return CallResult(
        call_id=outcome.run_id,
        tool=tool,
        state=state,
        output=outcome.outputs.get(tool, {}) if state is CallState.DONE else None,
        reason=outcome.reason,
        error=error,
        confirmed=not outcome.unconfirmed,
    )


def nothing_open(reader: LedgerReader, call_id: str) -> bool:
    """Whether everything that was issued for a call is gone for certain."""
    return not reader.leases(LeaseFilter(run=call_id, states=OPEN, limit=1))
