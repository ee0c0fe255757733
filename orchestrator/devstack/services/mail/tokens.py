"""Whose token it is: signed ones by the issuer's keys, opaque ones by asking the issuer (RFC 7662)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.devstack.services.mail.errors import bad_token, no_token, unavailable
from orchestrator.pep.access import AccessToken
from orchestrator.pep.challenges import AccessRefused, Code
from orchestrator.pep.errors import IssuerUnreachable, TokenRefused
from orchestrator.pep.introspection import Introspection
from orchestrator.pep.protection import Protection

_PARTS_OF_JWS = 3


@dataclass(frozen=True, slots=True)
class Tokens:
    """Both kinds of one issuer. Without `introspection` there are no opaque ones."""

    protection: Protection
    introspection: Introspection | None

    async def authenticate(self, authorization: Sequence[str], query: str, method: str) -> AccessToken:
        """The token of a request. Raises ApiError."""
        try:
            token = await self._token(authorization, query)
        except AccessRefused as refused:
            if refused.code is Code.UNAUTHORIZED:
                raise no_token(method) from refused
            raise (unavailable() if refused.code is Code.UNAVAILABLE else bad_token()) from refused
        except TokenRefused as refused:
            raise bad_token() from refused
        except IssuerUnreachable as error:
            raise unavailable(retry_after=str(error.retry_after)) from error
        if "cnf" in token.claims:  # it is bound to a key, and no proof of it is looked at here (RFC 9449, 7)
            raise bad_token()
        return token

    async def _token(self, authorization: Sequence[str], query: str) -> AccessToken:
        text = authorization[0].partition(" ")[2].strip() if len(authorization) == 1 else ""
        scheme = authorization[0].partition(" ")[0].lower() if authorization else ""
        opaque = scheme == "bearer" and bool(text) and len(text.split(".")) != _PARTS_OF_JWS
        if self.introspection is None or not opaque or "access_token=" in query:
            return await self.protection.authenticate(authorization, query)
        return await self.introspection.identify(text, self.protection.expected)
