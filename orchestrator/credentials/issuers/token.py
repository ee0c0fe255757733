"""Access tokens for other services: JWTs after RFC 9068, signed inside Vault's transit engine."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

from orchestrator.credentials.types import Issued, IssueRequest
from orchestrator.errors import GrantRefused
from orchestrator.grants.credential import Credential
from orchestrator.secret import Secret
from orchestrator.vault.fields import not_understood, section, text, whole_number
from orchestrator.vault.jwks import algorithm_of, key_id

_CLOCK_SKEW = 5
"""Seconds by which `nbf` lies in the past, for services whose clock is a little behind."""


_CLOCK_DIFFERENCE = timedelta(seconds=5)
"""Beyond it our clock and Vault's are said to differ: Vault tells its own to the second, with the answer's delay."""

_ROTATIONS = 5
"""How often the key may turn out to be another one than that which has signed, before no sense is seen in it."""


class TokenIssuer:
    """Builds the claims, has Vault sign them. The private key never leaves Vault.

    A JWT cannot be revoked, so it expires with the step: `exp` is never later than the deadline.
    """

    def __init__(self) -> None:
        self._keys: dict[str, tuple[int, str, str]] = {}

    async def issue(self, request: IssueRequest) -> Issued:
        """Sign a token for the rest of the attempt (Vault API, `POST /transit/sign/:name`; RFC 9068, section 2).

        Raises VaultRefused, VaultUnavailable, or GrantRefused where no token issuer is configured.
        """
        scope = request.scope
        if request.token_issuer is None:
            raise GrantRefused(
                "no token issuer is configured",
                grant=scope.name,
                path=scope.resource,
                by="orchestrator",
                hint="set ORCHESTRATOR_TOKEN_ISSUER to the URL under which the public keys are served",
            )
        left = request.attempt.deadline - request.clock.monotonic()
        issued_at = int(_now(request).timestamp())
        expires = issued_at + max(1, int(min(left, scope.ttl)))
        claims = {
            "iss": request.token_issuer,
            "sub": request.attempt.agent,
            "aud": scope.audience,
            "client_id": request.attempt.workflow,
            "scope": " ".join(scope.scopes),
            "iat": issued_at,
            "nbf": issued_at - _CLOCK_SKEW,
            "exp": expires,
            "jti": request.lease_id,
        }
        token = await self._sign(request, claims)
        request.remember(token)
        ttl = expires - issued_at
        return Issued(
            Credential(scope.name, scope.kind, ttl, fields={"token": token}),
            ttl,
            subject=request.lease_id,
            valid_until=datetime.fromtimestamp(expires, UTC),
        )

    async def _sign(self, request: IssueRequest, claims: dict[str, Any]) -> Secret:
        path = request.scope.resource
        version, kid, algorithm = await self._latest_key(request)
        for _ in range(_ROTATIONS):
            header = {"alg": algorithm, "typ": "at+jwt", "kid": kid}
            signing_input = f"{_base64url(header)}.{_base64url(claims)}"
            body = await request.vault.request(
                "post",
                path,
                token=request.token,
                deadline=request.attempt.deadline,
                stop=request.stop,
                payload={
                    "input": base64.b64encode(signing_input.encode()).decode(),
                    "hash_algorithm": "sha2-256",
                    "marshaling_algorithm": "jws",
                },
            )
            _, signed_by, signature = text(section(body, "data", path), "signature", path).split(":", 2)
            if signed_by == f"v{version}":
                return Secret(f"{signing_input}.{signature}")
            version, kid, algorithm = await self._latest_key(request, refresh=True)
        raise not_understood(path)

    async def _latest_key(self, request: IssueRequest, *, refresh: bool = False) -> tuple[int, str, str]:
        """Version, `kid` and `alg` of the key that signs now; asked for once, and again after a rotation."""
        mount, _, name = request.scope.resource.partition("/sign/")
        if refresh or name not in self._keys:
            path = f"{mount}/keys/{name}"
            body = await request.vault.runtime_request("get", path, deadline=request.attempt.deadline)
            version = whole_number(section(body, "data", path), "latest_version", path, least=1)
            self._keys[name] = (version, key_id(name, version), algorithm_of(body))
        return self._keys[name]


def _now(request: IssueRequest) -> datetime:
    """The wall clock, unless Vault's differs by more than some seconds: then Vault's.

    The times in a token are compared with the clock of the service that gets it. One machine whose clock is wrong
    would hold tokens that are not valid yet, or are still valid long after the step; of the two clocks that of
    the server that everybody depends on is the one that is looked after.
    """
    ours, vaults = request.clock.now(), request.vault.time()
    return ours if vaults is None or abs(ours - vaults) <= _CLOCK_DIFFERENCE else vaults


def _base64url(value: dict[str, Any]) -> str:
    encoded = json.dumps(value, separators=(",", ":"), sort_keys=True)
    return base64.urlsafe_b64encode(encoded.encode()).rstrip(b"=").decode()
