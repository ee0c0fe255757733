"""What it means that a grant was not issued: for the ledger, for the step, and for what may exist all the same."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from orchestrator.credentials.faults import IssuerUnavailable
from orchestrator.credentials.types import LeaseHandle
from orchestrator.errors import GrantRefused, OrchestratorError, Refused, Unreachable, VaultUnreachable
from orchestrator.grants.scope import Scope
from orchestrator.ledger.events import LeaseDenied, LeaseEvent, LeaseFailed, LeaseRevoking
from orchestrator.vault.faults import Outcome, VaultRefused, VaultUnavailable, is_login


@dataclass(frozen=True, slots=True)
class NotIssued:
    """`event` is for the ledger, `error` is what the step fails with, `left` what has to be taken back unseen."""

    event: LeaseEvent
    error: OrchestratorError
    left: LeaseHandle | None = None


def not_issued(lease_id: str, scope: Scope, where: str, error: OrchestratorError, now: datetime) -> NotIssued:
    """Decide over the reason. `where` names step and grant, for people."""
    if isinstance(error, VaultUnavailable):
        unknown = error.outcome is Outcome.UNKNOWN
        event: LeaseEvent = LeaseFailed(lease_id=lease_id, reason=error.message)
        if unknown:
            event = LeaseRevoking(lease_id=lease_id, reason=f"outcome unknown: {error.message}")
        told: OrchestratorError = VaultUnreachable(f"{where} could not be issued: {error.message}", hint=error.hint)
        if error.status == 429:
            told = _refused(scope, where, "vault", error)
        return NotIssued(event, told, unseen(lease_id, scope, now, answered=error.status != 0) if unknown else None)
    if isinstance(error, IssuerUnavailable):
        unreachable = Unreachable(f"{where} could not be issued: {error.message}", hint=error.hint)
        if error.outcome is not Outcome.UNKNOWN:
            return NotIssued(LeaseFailed(lease_id=lease_id, reason=error.message), unreachable)
        event = LeaseRevoking(lease_id=lease_id, reason=f"outcome unknown: {error.message}")
        return NotIssued(event, unreachable, unseen(lease_id, scope, now, answered=True))
    if isinstance(error, Refused):
        return NotIssued(LeaseDenied(lease_id=lease_id, reason=error.message), _refused(scope, where, error.by, error))
    return NotIssued(LeaseFailed(lease_id=lease_id, reason=error.message), error)


def _refused(scope: Scope, where: str, by: str, error: OrchestratorError) -> GrantRefused:
    if isinstance(error, VaultRefused) and is_login(error.path):
        return GrantRefused(
            f"{where} was not asked for, since the orchestrator could not log in: {error.message}",
            grant=scope.name,
            path=error.path,
            by=by,
            hint=error.hint,
        )
    return GrantRefused(
        f"{where} was refused by {by}: {error.message}", grant=scope.name, path=scope.resource, by=by, hint=error.hint
    )


def unseen(lease_id: str, scope: Scope, now: datetime, *, answered: bool) -> LeaseHandle:
    """What may have been issued, although no usable answer came. It is valid for no longer than it was asked for."""
    return LeaseHandle(
        lease_id,
        scope.name,
        scope.kind,
        scope.resource,
        connection=scope.connection,
        valid_until=now + timedelta(seconds=scope.ttl),
        unknown=True,
        answered=answered,
    )
