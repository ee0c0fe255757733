"""Verifying RFC 9068 access tokens as a resource server does, with the answers of RFC 6750, section 3."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import httpx
from joserfc import jws, jwt
from joserfc.errors import ClaimError, JoseError, MissingClaimError
from joserfc.jwk import KeySet
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

_ALGORITHMS = ["ES256", "EdDSA"]
_LEEWAY = 2
"""Seconds that the clocks of issuer and service may differ."""

_REQUIRED = ("iss", "aud", "sub", "exp", "iat", "jti", "client_id")
"""RFC 9068, section 2.2."""

_WRONG = {
    "iss": "the token is of another issuer",
    "aud": "the token is for another audience",
    "exp": "the token has expired",
    "nbf": "the token is not valid yet",
}


class Rejected(Exception):
    """The request may not pass; `response` says why, in the way of RFC 6750."""

    def __init__(self, status: int, error: str | None = None, description: str = "", scope: str | None = None) -> None:
        super().__init__(description)
        parts = ['realm="translation"']
        parts += [f'error="{error}"'] if error else []
        parts += [f'error_description="{description}"'] if description else []
        parts += [f'scope="{scope}"'] if scope else []
        body = {"error": error or "unauthorized", "error_description": description}
        self.response: Response = JSONResponse(body, status, headers={"WWW-Authenticate": "Bearer " + ", ".join(parts)})


class KeysUnavailable(Exception):
    """The issuer's keys cannot be fetched: no token can be judged now."""


@dataclass
class BearerVerifier:
    """Accepts tokens of one issuer for one audience. Keys come from a JWKS, asked for again on an unknown `kid`."""

    issuer: str
    audience: str
    jwks_url: str
    _keys: KeySet | None = field(default=None, repr=False)

    async def verify(self, request: Request, scope: str) -> dict[str, Any]:
        """The claims of the request's token. Raises Rejected or KeysUnavailable."""
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Rejected(401)
        claims = await self._claims(token)
        granted = claims.get("scope")
        if not isinstance(granted, str) or scope not in granted.split():
            raise Rejected(403, "insufficient_scope", f"this needs the scope {scope}", scope)
        return claims

    async def _claims(self, token: str) -> dict[str, Any]:
        try:
            key_id = jws.extract_compact(token.encode()).headers().get("kid")
            keys = await self._keys_with(key_id)
            decoded = jwt.decode(token, keys, algorithms=_ALGORITHMS)
        except (JoseError, ValueError) as error:
            raise Rejected(401, "invalid_token", "the signature cannot be verified") from error
        if str(decoded.header.get("typ")).lower() not in ("at+jwt", "application/at+jwt"):
            raise Rejected(401, "invalid_token", "this is not an access token")
        self._check(decoded.claims)
        return dict(decoded.claims)

    def _check(self, claims: dict[str, Any]) -> None:
        required: dict[str, Any] = {name: {"essential": True} for name in _REQUIRED}
        required["iss"]["value"] = self.issuer
        required["aud"]["value"] = self.audience
        try:
            jwt.JWTClaimsRegistry(leeway=_LEEWAY, **required).validate(claims)
        except MissingClaimError as error:
            raise Rejected(401, "invalid_token", "the token lacks a required claim") from error
        except ClaimError as error:
            raise Rejected(401, "invalid_token", _WRONG.get(error.claim, "the token's claims are not valid")) from error

    async def _keys_with(self, key_id: object) -> KeySet:
        """The issuer's keys: those known already if `key_id` is one of them, else fetched anew."""
        if self._keys is None or key_id not in {key.kid for key in self._keys.keys}:
            try:
                async with httpx.AsyncClient(trust_env=False, timeout=5) as client:
                    response = await client.get(self.jwks_url)
                response.raise_for_status()
            except httpx.HTTPError as error:
                raise KeysUnavailable(str(error)) from error
            self._keys = KeySet.import_key_set(response.json())
        if key_id not in {key.kid for key in self._keys.keys}:
            raise Rejected(401, "invalid_token", "the signature cannot be verified")
        return self._keys
