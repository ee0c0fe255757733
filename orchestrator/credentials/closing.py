"""Taking credentials back, and never calling "revoked" what is not confirmed.

Used at the end of every step attempt, at the end of every run and, from the ledger's records alone, by recovery.
Vault is asked first, lease by lease; then the database, with one login for all step keys in question.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial

from orchestrator.credentials.issuers.certificate.end import KIND, certificate_end
from orchestrator.credentials.types import (
    STEP_TOKEN_KIND,
    Asked,
    Attempt,
    Confirm,
    Duties,
    LeaseHandle,
    LoginLeft,
    Suspect,
    SweptLogins,
)
from orchestrator.errors import OrchestratorError, Unreachable
from orchestrator.ledger.events import (
    LeaseEnded,
    LeaseEvent,
    LeaseRevocationFailed,
    LeaseRevoked,
    LeaseVaultRevoked,
    OrphansSwept,
)
from orchestrator.ledger.ids import step_key_of
from orchestrator.uninterrupted import is_cancelled
from orchestrator.vault.session import VaultSession


async def close_lease(
    handle: LeaseHandle, vault: VaultSession, *, deadline: float, confirm: Confirm = Confirm.VAULT
) -> LeaseEvent:
    """Ask Vault to take one lease back and say what became of it. Never raises for what Vault or the network does.

    Step tokens go by accessor and leases by their Vault lease id, synchronously. A handle that has
    neither although its kind needs one is of unknown outcome and cannot be confirmed here. What another issuer has
    issued is revoked there, as long as it is held, or ends by itself. A certificate is looked at. With
    `Confirm.DATABASE` Vault's word for a database login is recorded as just that. `deadline` is monotonic.
    """
    not_taken_back = _ended if handle.outside else partial(_failed, vault)
    try:
        if handle.outside:
            return await _close_outside(handle, deadline)
        if handle.grant_kind == STEP_TOKEN_KIND:
            if not handle.accessor:
                return not_taken_back(handle, "outcome unknown: no accessor was received")
            await vault.revoke_accessor(handle.accessor, deadline=deadline)
            return LeaseRevoked(lease_id=handle.lease_id, confirmed_by="vault")
        if handle.vault_lease_id:
            await vault.revoke_lease(handle.vault_lease_id, deadline=deadline)
            if handle.grant_kind == KIND and handle.subject:
                return await certificate_end(handle, vault, deadline=deadline)
            if confirm is Confirm.DATABASE and handle.connection:
                return LeaseVaultRevoked(lease_id=handle.lease_id)
            return LeaseRevoked(lease_id=handle.lease_id, confirmed_by="vault")
    except OrchestratorError as error:
        return not_taken_back(handle, error.message)
    except (Exception, asyncio.CancelledError) as error:
        if is_cancelled():
            raise
        # Whatever it was, and for whomever a cancellation was meant: the other leases are taken back all the same.
        return not_taken_back(handle, f"unexpected {type(error).__name__}")
    if handle.unknown:
        return not_taken_back(handle, "outcome unknown: no lease id was received")
    return _ended(handle)


_NOBODY_HOLDS_IT = "its outcome is not known: if it exists, nobody holds it"


async def _close_outside(handle: LeaseHandle, deadline: float) -> LeaseEvent:
    """What becomes of a credential of another issuer than Vault: `revoked` only where that says so itself.

    Without the credential nobody can revoke it, and no later try would help, so it is ended here in any case.
    """
    if handle.unknown:
        return _ended(handle, _NOBODY_HOLDS_IT)
    if handle.revoke is None:
        return _ended(handle)
    revocation = await handle.revoke(deadline)
    if revocation.confirmed:
        return LeaseRevoked(lease_id=handle.lease_id, confirmed_by="issuer")
    return _ended(handle, revocation.reason)


def _ended(handle: LeaseHandle, reason: str = "") -> LeaseEvent:
    return LeaseEnded(lease_id=handle.lease_id, valid_until=handle.valid_until, reason=reason)


def _failed(vault: VaultSession, handle: LeaseHandle, error: str) -> LeaseEvent:
    return LeaseRevocationFailed(lease_id=handle.lease_id, error=error, vault_time=vault.time())


def suspects_of(
    step_key: str, held: Sequence[LeaseHandle], ends: Iterable[LeaseEvent | OrphansSwept]
) -> tuple[Suspect, ...]:
    """Those of the leases of one step key that Vault's answers do not settle."""
    known = frozenset(handle.subject for handle in held)
    open_ones = {end.lease_id: end for end in ends if isinstance(end, LeaseVaultRevoked | LeaseRevocationFailed)}
    return tuple(
        Suspect(handle, step_key, known, isinstance(open_ones[handle.lease_id], LeaseVaultRevoked))
        for handle in held
        if handle.connection and handle.lease_id in open_ones
    )


async def ask_databases(
    suspects: Sequence[Suspect], attempt: Attempt, duties: Duties | None, *, deadline: float
) -> Asked:
    """Look for the suspects in their databases and drop what is there, each database with one login.

    The login is made for `attempt`, whose own step key plays no part. `deadline` is monotonic.
    """
    asked = Asked()
    by_connection: dict[str, list[Suspect]] = defaultdict(list)
    for suspect in suspects:
        by_connection[suspect.handle.connection or ""].append(suspect)

    async def ask(duties: Duties, connection: str, here: Sequence[Suspect]) -> None:
        keys = list(dict.fromkeys(suspect.step_key for suspect in here))
        try:
            swept = await duties.sweep(attempt, connection, keys, deadline=deadline)
        except OrchestratorError as error:
            asked.silent[connection] = error
        except Exception as error:  # noqa: BLE001 -- nothing can be said then, whatever it was
            asked.silent[connection] = Unreachable(f"unexpected {type(error).__name__}")
        else:
            asked.told.extend(settled(here, connection, swept))
            asked.witnesses |= {(connection, key): witness for key, witness in swept.witnesses.items()}
            if swept.apart:
                return
        asked.apart = False

    if duties is not None:
        await asyncio.gather(*(ask(duties, *each) for each in sorted(by_connection.items())))
    return asked


def settled(suspects: Sequence[Suspect], connection: str, swept: SweptLogins) -> list[LeaseEvent | OrphansSwept]:
    """What a database's answer says of each suspect in it; nothing of those that Vault may still be creating."""
    dropped, left = _by_key(swept.dropped), _by_key(each.login for each in swept.left)
    by_key: dict[str, list[Suspect]] = defaultdict(list)
    for suspect in suspects:
        by_key[suspect.step_key].append(suspect)
    told: list[LeaseEvent | OrphansSwept] = []
    for key, here in by_key.items():
        logins = dropped.get(key, [])
        if key in left:
            problems = left_in(connection, [each for each in swept.left if each.login in left[key]])
            told += [LeaseRevocationFailed(lease_id=each.handle.lease_id, error=problems) for each in here]
            continue
        if logins or not all(each.vault_agrees for each in here):
            told.append(OrphansSwept(step_key=key, connection=connection, roles=tuple(sorted(logins))))
        witness = swept.witnesses[key].as_json() if key in swept.witnesses else {}
        told += [
            LeaseRevoked(lease_id=each.handle.lease_id, confirmed_by="database", witness=witness)
            for each in here
            if gone_after_sweep(each.handle, logins, each.known)
        ]
    return told


def left_in(connection: str, left: Sequence[LoginLeft]) -> str:
    """What is told of logins that the database could only disable."""
    return f"still in `{connection}`, disabled: " + "; ".join(f"{each.login}: {each.problem}" for each in left)


def gone_after_sweep(handle: LeaseHandle, dropped: Collection[str], known: Collection[str]) -> bool:
    """Whether a lease is gone for certain, now that no login of its step key is left in the database.

    Vault may still be working on an issuance that it has not answered. It is not where one of the `dropped`
    logins can only be its own, being none of those that are `known` to have been issued.
    """
    return handle.answered or not handle.unknown or not set(dropped) <= set(known)


def merged(
    ends: Sequence[LeaseEvent | OrphansSwept], told: Sequence[LeaseEvent | OrphansSwept]
) -> list[LeaseEvent | OrphansSwept]:
    """What to record of leases that Vault was asked about first and then their database.

    Vault's word stays on record; a failure of Vault's is replaced by what the database says.
    """
    decided = {event.lease_id for event in told if not isinstance(event, OrphansSwept)}
    kept = [end for end in ends if not (isinstance(end, LeaseRevocationFailed) and end.lease_id in decided)]
    return [*kept, *told]


def _by_key(logins: Iterable[str]) -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for login in logins:
        found[step_key_of(login)].append(login)
    return found
