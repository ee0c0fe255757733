"""Whether a certificate is revoked once its lease is: Vault's answer to the revocation does not tell.

Measured on OpenBao 2.7.2: a certificate in its last two seconds is not put on the list of revoked ones, although the
revocation of its lease is answered with 204, as always. What a serial number is revoked for is told to anybody, without
a token (Vault API, `GET /pki/cert/:serial`).
"""

from __future__ import annotations

from datetime import datetime, timedelta

from orchestrator.credentials.types import LeaseHandle
from orchestrator.errors import Unreachable
from orchestrator.ledger.events import LeaseEnded, LeaseEvent, LeaseRevoked
from orchestrator.vault.faults import VaultRefused
from orchestrator.vault.fields import not_understood, section, text, whole_number
from orchestrator.vault.session import VaultSession

KIND = "certificate"
_LAST = timedelta(seconds=3)
"""Before the end of a certificate Vault revokes it no more: two seconds, and what its clock is told late by."""


async def certificate_end(handle: LeaseHandle, vault: VaultSession, *, deadline: float) -> LeaseEvent:
    """How a certificate whose lease Vault has revoked has ended. Raises OrchestratorError where it is still valid."""
    path = f"{handle.resource.partition('/sign/')[0]}/cert/{handle.subject}"
    try:
        found = section(await vault.request("get", path, token=None, deadline=deadline), "data", path)
    except VaultRefused as refusal:
        if refusal.status == 404 and handle.valid_until is not None and _is_over(handle.valid_until, vault):
            return _ended(handle, handle.valid_until)  # tidied up
        raise
    if whole_number(found, "revocation_time", path, most=2**40):
        return LeaseRevoked(lease_id=handle.lease_id, confirmed_by="vault")
    ends = _end_of(text(found, "certificate", path), path)
    if not _is_over(ends, vault):
        raise Unreachable(
            f"Vault has ended the lease, and the certificate {handle.subject} is not revoked: until {ends}"
        )
    return _ended(handle, ends)


def _ended(handle: LeaseHandle, ends: datetime) -> LeaseEnded:
    reason = "it was in its last seconds, in which Vault revokes none"
    return LeaseEnded(lease_id=handle.lease_id, valid_until=ends, reason=reason)


def _is_over(ends: datetime, vault: VaultSession) -> bool:
    now = vault.time()
    return now is not None and now >= ends - _LAST


def _end_of(pem: str, path: str) -> datetime:
    from cryptography import x509  # only who has certificates waits for it to be loaded

    try:
        return x509.load_pem_x509_certificate(pem.encode()).not_valid_after_utc
    except ValueError:
        raise not_understood(path) from None
