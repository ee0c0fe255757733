"""Verifying RFC 9068 access tokens as a resource server does, with the answers of RFC 6750, section 3."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

_ALGORITHMS = ["ES256", "EdDSA"]
_LEEWAY = 2


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


@dataclass
class BearerVerifier:
    """Accepts tokens of one issuer for one audience. Keys come from a JWKS, asked for again on an unknown `kid`."""

    issuer: str
    audience: str
    jwks_url: str
    _keys: Any = field(default=None, repr=False)

    async def verify(self, request: Request, scope: str) -> dict[str, Any]:
        """The claims of the request's token. Raises Rejected."""
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Rejected(401)
        claims = await self._claims(token)
        if scope not in str(claims.get("scope", "")).split():
            raise Rejected(403, "insufficient_scope", f"this needs the scope {scope}", scope)
        return claims

    async def _claims(self, token: str) -> dict[str, Any]:
        from joserfc import jwt
        from joserfc.errors import JoseError

        for fresh in (False, True):
            keys = await self._key_set(fresh=fresh)
            try:
                decoded = jwt.decode(token, keys, algorithms=_ALGORITHMS)
                break
            except (JoseError, ValueError) as error:
                if fresh:
                    raise Rejected(401, "invalid_token", "the signature cannot be verified") from error
        if decoded.header.get("typ") not in ("at+jwt", "application/at+jwt"):
            raise Rejected(401, "invalid_token", "this is not an access token")
        self._check(decoded.claims)
        return dict(decoded.claims)

    def _check(self, claims: dict[str, Any]) -> None:
        now = time.time()
        audience = claims.get("aud")
        wrong = {
            "the token is of another issuer": claims.get("iss") != self.issuer,
            "the token is for another audience": self.audience
            not in ([audience] if isinstance(audience, str) else audience or []),
            "the token has expired": not isinstance(claims.get("exp"), int) or claims["exp"] + _LEEWAY < now,
            "the token is not valid yet": claims.get("nbf", 0) - _LEEWAY > now,
        }
        for description, is_so in wrong.items():
            if is_so:
                raise Rejected(401, "invalid_token", description)

    async def _key_set(self, *, fresh: bool) -> Any:
        import httpx
        from joserfc.jwk import KeySet

        if self._keys is None or fresh:
            async with httpx.AsyncClient(trust_env=False, timeout=5) as client:
                response = await client.get(self.jwks_url)
                response.raise_for_status()
            self._keys = KeySet.import_key_set(response.json())
        return self._keys
