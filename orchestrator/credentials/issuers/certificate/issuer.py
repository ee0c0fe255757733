"""Certificates from Vault's pki and ssh engines, for keys that are made here for one lease."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from orchestrator.credentials.issuers.certificate import ssh, x509
from orchestrator.credentials.issuers.certificate.checked import Checked, Unfit
from orchestrator.credentials.types import Issued, IssueRequest
from orchestrator.errors import GrantRefused
from orchestrator.grants.credential import Credential
from orchestrator.secret import Secret
from orchestrator.vault.fields import seconds, section, text

_CLOCK = timedelta(seconds=5)
"""By how much a certificate may end later than was asked for: Vault tells its time to the second."""

_LATER = 10
"""Seconds that it is asked for beyond the deadline: while Vault signs, time goes on, and in its last seconds Vault does
not revoke it."""


class CertificateIssuer:
    """Makes a key, has Vault sign what is declared for it, and looks at whether the answer says that and no more.

    X.509 comes with a lease, whose revocation revokes the certificate by its serial number (Vault API,
    `POST /pki/sign/:name` of a role with `generate_lease`). One of SSH cannot be revoked: it ends by itself.
    """

    async def issue(self, request: IssueRequest) -> Issued:
        """The key does not leave this process before the certificate is found to be as declared.

        Raises VaultRefused; or VaultUnavailable, after which there may be a certificate, whose key nobody has.
        """
        scope = request.scope
        asked = _seconds(request)
        of_ssh = (scope.parameters or {}).get("form") == "ssh"
        made = await asyncio.to_thread(ssh.prepare if of_ssh else x509.prepare, scope.parameters or {}, asked)
        request.remember(made.key)
        body = await request.vault.request(
            "post",
            scope.resource,
            token=request.token,
            deadline=request.attempt.deadline,
            payload=made.wish,
            repeatable=False,
            stop=request.stop,
        )
        data = section(body, "data", scope.resource)
        if of_ssh:
            signed = text(data, "signed_key", scope.resource)
            return _issued(request, made.check(signed, []), made.key, asked, lease_id="")
        lease_id = str(body.get("lease_id") or "")
        if not lease_id:
            text(data, "certificate", scope.resource)
        found = made.check(str(data.get("certificate")), _chain(data))
        if found.unfit is None and not lease_id:
            found = replace(found, unfit=Unfit(*_NO_LEASE))
        lived = seconds(body, "lease_duration", scope.resource) + 1 if lease_id else asked
        return _issued(request, found, made.key, min(asked, lived), lease_id=lease_id)


_NO_LEASE = (
    "it was signed without a lease, so it could not be revoked",
    "set `generate_lease` on the role in Vault, and not `no_store`",
)


def _seconds(request: IssueRequest) -> int:
    """How long it is to be valid: no longer than the step may need it, which is what an offline verifier sees."""
    ttl, longest = request.scope.ttl, request.attempt.max_ttl
    left = math.ceil(request.attempt.deadline - request.clock.monotonic()) + _LATER
    if request.scope.on_expiry == "reissue":  # the deadline may be that of the one whose place it takes
        left = ttl
    return max(1, min(left, ttl, ttl if longest is None else longest))


def _chain(data: Mapping[str, Any]) -> list[str]:
    chain = data.get("ca_chain") or [data.get("issuing_ca")]
    return [str(each) for each in chain] if isinstance(chain, list) else []


def _issued(request: IssueRequest, found: Checked, key: Secret, asked: int, *, lease_id: str) -> Issued:
    """On record in any case; a step gets it only where nothing speaks against it."""
    scope, now = request.scope, request.vault.time() or request.clock.now()
    unfit, ttl = found.unfit, asked
    if unfit is None:
        unfit = _unfit_times(found, now, asked)
        ttl = _granted(found.not_after, now, asked)
    fields = {**{name: Secret(value) for name, value in found.fields.items()}, "key": key}
    return Issued(
        Credential(scope.name, scope.kind, ttl, fields=fields),
        ttl,
        subject=found.subject,
        vault_lease_id=lease_id,
        valid_until=found.not_after,
        refused=None
        if unfit is None
        else GrantRefused(unfit.what, grant=scope.name, path=scope.resource, by="orchestrator", hint=unfit.hint),
    )


def _unfit_times(found: Checked, now: datetime, asked: int) -> Unfit | None:
    if found.not_before > now + _CLOCK:
        return Unfit("it is not valid yet", "compare the clocks of Vault and of this machine")
    if found.not_after > now + timedelta(seconds=asked) + _CLOCK:
        return Unfit(
            f"it is valid for longer than the {asked}s that were asked for",
            "set neither `not_after` nor a least life on the role",
        )
    return None


def _granted(not_after: datetime, now: datetime, asked: int) -> int:
    """Seconds that it is valid: those that were asked for, but for what rounding took of them."""
    left = (not_after - now).total_seconds()
    return asked if left >= asked - _CLOCK.total_seconds() else max(0, int(left))
