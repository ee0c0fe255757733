"""What is decided about credentials that were not issued, or not confirmed gone; as plain functions."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.credentials.closing import gone_after_sweep
from orchestrator.credentials.faults import IssuerUnavailable
from orchestrator.credentials.issuers.oauth2.endpoint import IssuerRefused
from orchestrator.credentials.refusals import not_issued
from orchestrator.credentials.types import LeaseHandle
from orchestrator.errors import GrantRefused, LedgerError, OrchestratorError, Unreachable, VaultUnreachable
from orchestrator.grants.scope import Scope
from orchestrator.ledger.lease import LeaseState
from orchestrator.vault.faults import Outcome, VaultRefused, VaultUnavailable

SCOPE = Scope("db", "database", "database/creds/reader", 60, "support", "reader")
NOW = datetime(2026, 1, 1, tzinfo=UTC)
OURS, ANOTHER = "orc_read-k3v9aa_aaaaaaaa", "orc_read-k3v9aa_bbbbbbbb"


def handle(*, unknown: bool = False, answered: bool = True, subject: str = "") -> LeaseHandle:
    return LeaseHandle(
        "lease_1",
        "db",
        "database",
        SCOPE.resource,
        connection="support",
        subject=subject,
        unknown=unknown,
        answered=answered,
    )


def unavailable(outcome: Outcome, status: int = 0) -> VaultUnavailable:
    return VaultUnavailable("no", outcome=outcome, path=SCOPE.resource, status=status)


@pytest.mark.parametrize(
    ("lease", "dropped", "gone"),
    [
        pytest.param(handle(subject=OURS), [], True, id="it was issued, and no login is left"),
        pytest.param(handle(unknown=True), [], True, id="Vault has answered, and no login is left"),
        pytest.param(handle(unknown=True, answered=False), [], False, id="Vault may still create it"),
        pytest.param(handle(unknown=True, answered=False), [ANOTHER], True, id="what was dropped can only be its own"),
        pytest.param(handle(unknown=True, answered=False), [OURS], False, id="what was dropped is another lease's"),
    ],
)
def test_a_sweep_proves_gone_only_what_nobody_can_be_creating(
    lease: LeaseHandle, dropped: list[str], gone: bool
) -> None:
    assert gone_after_sweep(lease, dropped, known={OURS}) is gone


@pytest.mark.parametrize(
    ("error", "state", "raised", "left"),
    [
        (unavailable(Outcome.UNKNOWN), LeaseState.REVOKING, VaultUnreachable, "unanswered"),
        (unavailable(Outcome.UNKNOWN, 500), LeaseState.REVOKING, VaultUnreachable, "answered"),
        (unavailable(Outcome.NOT_DONE, 503), LeaseState.FAILED, VaultUnreachable, ""),
        (unavailable(Outcome.NOT_DONE, 429), LeaseState.FAILED, GrantRefused, ""),
        (VaultRefused("no", status=403, path="x"), LeaseState.DENIED, GrantRefused, ""),
        (Unreachable("no"), LeaseState.FAILED, Unreachable, ""),
        (LedgerError("no"), LeaseState.FAILED, LedgerError, ""),
        (IssuerUnavailable("no", outcome=Outcome.UNKNOWN), LeaseState.REVOKING, Unreachable, "answered"),
        (IssuerUnavailable("no", outcome=Outcome.NOT_DONE), LeaseState.FAILED, Unreachable, ""),
        (IssuerRefused("no", code="invalid_scope"), LeaseState.DENIED, GrantRefused, ""),
    ],
    ids=lambda value: getattr(value, "__name__", None) or str(value),
)
def test_what_was_not_issued_is_told_and_what_may_exist_is_kept(
    error: OrchestratorError, state: LeaseState, raised: type[OrchestratorError], left: str
) -> None:
    outcome = not_issued("lease_1", SCOPE, "step `read`: grant `db`", error, NOW)
    assert outcome.event.to is state
    assert type(outcome.error) is raised
    assert (outcome.left is not None) is bool(left)
    if outcome.left is not None:
        assert outcome.left.unknown
        assert outcome.left.answered is (left == "answered")
        assert outcome.left.connection == "support"
        assert outcome.left.valid_until == NOW + timedelta(seconds=SCOPE.ttl)
