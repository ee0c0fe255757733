"""Taking credentials back, and never calling "revoked" what is not confirmed.

Used at the end of every step attempt and, from the ledger's records alone, by recovery.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from orchestrator.credentials.types import STEP_TOKEN_KIND, Attempt, Duties, LeaseHandle, LoginsLeft
from orchestrator.errors import OrchestratorError
from orchestrator.ledger.events import LeaseEnded, LeaseEvent, LeaseRevocationFailed, LeaseRevoked, OrphansSwept
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
    except Exception as error:  # noqa: BLE001 -- the other leases are taken back all the same
        return _failed(handle, f"unexpected {type(error).__name__}", vault)
    if handle.unknown:
        return _failed(handle, "outcome unknown: no lease id was received", vault)
    return LeaseEnded(lease_id=handle.lease_id, valid_until=handle.valid_until)


def _failed(handle: LeaseHandle, error: str, vault: VaultSession) -> LeaseRevocationFailed:
    return LeaseRevocationFailed(lease_id=handle.lease_id, error=error, vault_time=vault.time())


async def close_all(
    held: Sequence[LeaseHandle], attempt: Attempt, *, vault: VaultSession, duties: Duties | None, deadline: float
) -> list[LeaseEvent | OrphansSwept]:
    """Take back what an attempt holds, in the given order, and say what became of each.

    What Vault does not confirm is looked for in its database by the attempt's step key.
    """
    ends: list[LeaseEvent | OrphansSwept] = [await close_lease(handle, vault, deadline=deadline) for handle in held]
    unconfirmed = {end.lease_id for end in ends if isinstance(end, LeaseRevocationFailed)}
    suspects = [handle for handle in held if handle.connection and handle.lease_id in unconfirmed]
    known = {handle.subject for handle in held}
    for connection in sorted({handle.connection for handle in suspects if handle.connection}):
        swept = await sweep_database(attempt, connection, duties, deadline)
        if swept is None:
            continue
        here = [handle for handle in suspects if handle.connection == connection]
        if isinstance(swept, LoginsLeft):
            told: list[LeaseEvent | OrphansSwept] = [
                LeaseRevocationFailed(lease_id=handle.lease_id, error=swept.message) for handle in here
            ]
        else:
            here = [handle for handle in here if gone_after_sweep(handle, swept.roles, known)]
            told = [swept, *(LeaseRevoked(lease_id=each.lease_id, confirmed_by="database") for each in here)]
        decided = {handle.lease_id for handle in here}
        ends = [end for end in ends if getattr(end, "lease_id", None) not in decided] + told
    return ends


def gone_after_sweep(handle: LeaseHandle, dropped: Collection[str], known: Collection[str]) -> bool:
    """Whether a lease is gone for certain, now that no login of its step key is left in the database.

    Vault may still be working on an issuance that it has not answered. It is not where one of the `dropped`
    logins can only be its own, being none of those that are `known` to have been issued.
    """
    return handle.answered or not handle.unknown or not set(dropped) <= set(known)


async def sweep_database(
    attempt: Attempt, connection: str, duties: Duties | None, deadline: float
) -> OrphansSwept | LoginsLeft | None:
    """Drop the logins of the attempt's step key: what was dropped, or what is left; None where nothing can be said."""
    if duties is None:
        return None
    try:
        roles = await duties.sweep(attempt, connection, deadline=deadline)
    except LoginsLeft as left:
        return left
    except Exception:  # noqa: BLE001 -- nothing can be said then, whatever it was
        return None
    return OrphansSwept(step_key=attempt.step_key, connection=connection, roles=roles)
