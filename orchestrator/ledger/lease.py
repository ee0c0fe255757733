"""The life of a lease: the one table of legal transitions."""

from __future__ import annotations

from enum import StrEnum

from orchestrator.errors import IllegalTransition


class LeaseState(StrEnum):
    """Where a lease is in its life."""

    REQUESTED = "requested"
    """The intent is recorded; Vault may or may not have been asked."""
    DENIED = "denied"
    """Vault or the orchestrator said no: there is no credential."""
    FAILED = "failed"
    """It was certainly not issued, for another reason."""
    ISSUED = "issued"
    """The step, or the agent, has it."""
    REVOKING = "revoking"
    """It is to go, and nobody has confirmed yet that it is gone."""
    REVOKED = "revoked"
    """Confirmed gone."""
    EXPIRED = "expired"
    """It ran out by itself before it was revoked; confirmed gone."""
    ENDED = "ended"
    """Access ended, but the secret cannot be revoked and stays valid (a JWT until `exp`, a static key for ever)."""


TRANSITIONS: dict[LeaseState, frozenset[LeaseState]] = {
    LeaseState.REQUESTED: frozenset({LeaseState.DENIED, LeaseState.FAILED, LeaseState.ISSUED, LeaseState.REVOKING}),
    LeaseState.ISSUED: frozenset({LeaseState.ISSUED, LeaseState.REVOKING}),
    LeaseState.REVOKING: frozenset({LeaseState.REVOKING, LeaseState.REVOKED, LeaseState.EXPIRED, LeaseState.ENDED}),
    LeaseState.DENIED: frozenset(),
    LeaseState.FAILED: frozenset(),
    LeaseState.REVOKED: frozenset(),
    LeaseState.EXPIRED: frozenset(),
    LeaseState.ENDED: frozenset(),
}

VAULT_REVOKED = "revoked in Vault; its database is yet to be asked"
"""The reason of a lease that is being revoked and of which only one of two witnesses has said that it is gone."""

STILL_WORKS = "its password still works although Vault says that it is revoked; its database is yet to be asked"
"""The same of one that the third witness has spoken against."""

FINAL = frozenset(state for state, following in TRANSITIONS.items() if not following)
OPEN = frozenset(TRANSITIONS) - FINAL


def check_transition(lease_id: str, present: LeaseState | None, following: LeaseState) -> None:
    """Raise IllegalTransition unless `following` may come after `present` (None: no such lease yet)."""
    legal = frozenset({LeaseState.REQUESTED}) if present is None else TRANSITIONS[present]
    if following not in legal:
        raise IllegalTransition(f"lease {lease_id}: {present or 'nothing'} cannot become {following}")
