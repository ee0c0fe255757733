"""Taking credentials back: one lease at a time, and never calling "revoked" what is not confirmed.

Used at the end of every step attempt and, from the ledger's records alone, by recovery.
"""

from __future__ import annotations

from orchestrator.credentials.types import STEP_TOKEN_KIND, LeaseHandle
from orchestrator.errors import OrchestratorError
from orchestrator.ledger.events import LeaseEnded, LeaseEvent, LeaseRevocationFailed, LeaseRevoked
from orchestrator.vault.session import VaultSession


async def close_lease(handle: LeaseHandle, vault: VaultSession, *, deadline: float) -> LeaseEvent:
    """Take one lease back and say what became of it. Never raises for what Vault, the network or a login does.

    Step tokens go by accessor and leases by their Vault lease id, synchronously. A handle that has
    neither although its kind needs one is of unknown outcome and cannot be confirmed here.
    """
    try:
        if handle.grant_kind == STEP_TOKEN_KIND:
            if not handle.accessor:
                return _failed(handle, "outcome unknown: no accessor was received", vault)
            await vault.revoke_accessor(handle.accessor, deadline=deadline)
            return LeaseRevoked(lease_id=handle.lease_id, confirmed_by="vault")
        if handle.vault_lease_id:
            await vault.revoke_lease(handle.vault_lease_id, deadline=deadline)
            return LeaseRevoked(lease_id=handle.lease_id, confirmed_by="vault")
    except OrchestratorError as error:
        return _failed(handle, error.message, vault)
    if handle.unknown:
        return _failed(handle, "outcome unknown: no lease id was received", vault)
    return LeaseEnded(lease_id=handle.lease_id, valid_until=handle.valid_until)


def _failed(handle: LeaseHandle, error: str, vault: VaultSession) -> LeaseRevocationFailed:
    return LeaseRevocationFailed(lease_id=handle.lease_id, error=error, vault_time=vault.time())
