"""Access tokens for other services: JWTs after RFC 9068, signed inside Vault's transit engine."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from orchestrator.credentials.types import Issued, IssueRequest
from orchestrator.errors import GrantRefused
from orchestrator.grants.credential import Credential
from orchestrator.grants.wish import confirmation
from orchestrator.secret import Secret
from orchestrator.vault.fields import LONGEST_TTL, not_understood, section, text, whole_number
from orchestrator.vault.jwks import CLOCK_SKEW, algorithm_of, issuer_of, key_id

_CLOCK_DIFFERENCE = timedelta(seconds=5)
"""Beyond it our clock and Vault's are said to differ: Vault tells its own to the second, with the answer's delay."""

_ROTATIONS = 5
"""How often the key may turn out to be another one than that which has signed, before no sense is seen in it."""


class TokenIssuer:
    """Builds the claims and has Vault sign them, or has the server do both. The private key never leaves Vault.

    A JWT cannot be revoked, so it expires with the step: `exp` is never later than the deadline.
    """

    def __init__(self) -> None:
        self._keys: dict[str, tuple[int, str, str]] = {}

    async def issue(self, request: IssueRequest) -> Issued:
        """Sign a token for the rest of the attempt (Vault API, `POST /transit/sign/:name`; RFC 9068, section 2).

        Raises VaultRefused, VaultUnavailable, or GrantRefused where no token issuer is configured, or where a token is
        to be bound to a key that the claims cannot name.
        """
        scope = request.scope
        left = max(1, int(min(request.attempt.deadline - request.clock.monotonic(), scope.ttl)))
        if scope.thumbprint and scope.profile != "transit":
            raise GrantRefused(
                f"a token of the profile `{scope.profile}` cannot be bound to a key: the server fixes its claims",
                grant=scope.name,
                path=scope.resource,
                by="orchestrator",
                hint="ask for it without a proof of possession, or declare `profile: transit`",
            )
        if scope.profile == "workflow":
            token, issued_at, expires = await self._by_workflow(request, left)
        elif scope.profile == "identity":
            token, issued_at, expires = await self._by_identity(request)
        else:
            token, issued_at, expires = await self._by_transit(request, left)
        request.remember(token)
        ttl = expires - issued_at
        return Issued(
            Credential(scope.name, scope.kind, ttl, fields={"token": token}),
            ttl,
            subject=request.lease_id,
            valid_until=datetime.fromtimestamp(expires, UTC),
        )

    async def _by_workflow(self, request: IssueRequest, seconds: int) -> tuple[Secret, int, int]:
        """The token that the server builds and signs by itself, when it was issued, and when it expires."""
        path = request.scope.resource
        data = await _ask(request, "post", {"jti": request.lease_id, "seconds": seconds})
        signed = text(data, "input", path)
        signature = text(data, "signature", path).rpartition(":")[2]
        token = Secret(f"{signed}.{signature}")
        request.remember(token)
        return token, *_as_declared(request, signed, sub=request.attempt.agent, jti=request.lease_id)

    async def _by_identity(self, request: IssueRequest) -> tuple[Secret, int, int]:
        """The token of the identity engine's role (Vault API, `GET /identity/oidc/token/:name`)."""
        token = Secret(text(await _ask(request, "get"), "token", request.scope.resource))
        request.remember(token)
        return token, *_as_declared(request, token.reveal(), agent=request.attempt.agent)

    async def _by_transit(self, request: IssueRequest, seconds: int) -> tuple[Secret, int, int]:
        """A token of claims that are built here, when it was issued, and when it expires."""
        scope, issuer = request.scope, request.token_issuer
        if issuer is None:
            raise GrantRefused(
                "no token issuer is configured",
                grant=scope.name,
                path=scope.resource,
                by="orchestrator",
                hint="set ORCHESTRATOR_TOKEN_ISSUER to the URL under which the public keys are served",
            )
        issued_at = int(_now(request).timestamp())
        expires = issued_at + seconds
        claims: dict[str, Any] = {
            "iss": issuer_of(issuer, scope.resource.rpartition("/")[2]),
            "sub": request.attempt.agent,
            "aud": scope.audience,
            "client_id": request.attempt.workflow,
            "scope": " ".join(scope.scopes),
            "iat": issued_at,
            "nbf": issued_at - CLOCK_SKEW,
            "exp": expires,
            "jti": request.lease_id,
        }
        if scope.details:  # RFC 9396, section 9.1
            claims["authorization_details"] = list(scope.details)
        if scope.thumbprint:
            claims["cnf"] = confirmation(scope.thumbprint)
        return await self._sign(request, claims), issued_at, expires

    async def _sign(self, request: IssueRequest, claims: dict[str, Any]) -> Secret:
        path = request.scope.resource
        version, kid, algorithm = await self._latest_key(request)
        for _ in range(_ROTATIONS):
            header = {"alg": algorithm, "typ": "at+jwt", "kid": kid}
            signing_input = f"{_base64url(header)}.{_base64url(claims)}"
            wish = {
                "input": base64.b64encode(signing_input.encode()).decode(),
                "hash_algorithm": "sha2-256",
                "marshaling_algorithm": "jws",
            }
            signed = await _ask(request, "post", wish)
            _, signed_by, signature = text(signed, "signature", path).split(":", 2)
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


async def _ask(request: IssueRequest, method: str, payload: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
    """The data of Vault's answer at the path of the grant, asked with the step's own token."""
    path = request.scope.resource
    body = await request.vault.request(
        method, path, token=request.token, deadline=request.attempt.deadline, stop=request.stop, payload=payload
    )
    return section(body, "data", path)


def _as_declared(request: IssueRequest, signed: str, **more: str) -> tuple[int, int]:
    """When a token of the server's begins and ends, after a look at whether it is the one that was declared.

    What is installed may be of an earlier workflow. Raises GrantRefused, or VaultUnavailable for what is no token.
    """
    scope, path = request.scope, request.scope.resource
    claims = _claims_of(signed, path)
    declared = {"aud": scope.audience, "scope": " ".join(scope.scopes), "client_id": request.attempt.workflow, **more}
    if other := sorted(name for name, value in declared.items() if claims.get(name) != value):
        raise GrantRefused(
            f"the server signs a token with another {', '.join(f'`{name}`' for name in other)} than is declared",
            grant=scope.name,
            path=path,
            by="orchestrator",
            hint="run `orchestrator provision plan`: the workflow has changed since it was installed",
        )
    issued_at = whole_number(claims, "iat", path, least=1, most=LONGEST_TTL)
    return issued_at, whole_number(claims, "exp", path, least=issued_at + 1, most=LONGEST_TTL)


def _claims_of(signed: str, path: str) -> Mapping[str, Any]:
    """The claims in the part of a JWS that is signed. Raises VaultUnavailable for what is none."""
    try:
        encoded = signed.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)))
    except (ValueError, IndexError, RecursionError):
        claims = None
    if not isinstance(claims, dict):
        raise not_understood(path)
    return claims


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
