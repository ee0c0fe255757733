"""The end of a token: revoked where its issuer says so itself, and else only ended (RFC 7009, RFC 7662).

An issuer answers 200 to the revocation of a token that it does not know, or that is none of this client's, and
`active: false` to a client that may not ask. So its word counts only if it called the token active just before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.clock import Clock
from orchestrator.credentials.faults import IssuerUnavailable
from orchestrator.credentials.issuers.oauth2.client import Client
from orchestrator.credentials.issuers.oauth2.endpoint import Form, Said, post
from orchestrator.credentials.issuers.oauth2.metadata import Endpoints
from orchestrator.credentials.types import Revocation
from orchestrator.secret import Secret
from orchestrator.vault.faults import Outcome
from orchestrator.vault.retry import retrying

if TYPE_CHECKING:
    import httpx

_SECONDS = 10.0
_OK = 200


@dataclass(frozen=True, slots=True)
class Ending:
    """How the tokens of one answer end. The first is the access token; all are revoked."""

    tokens: Sequence[tuple[Secret, str]]
    endpoints: Endpoints
    client: Client
    clock: Clock
    connect: Callable[[float], httpx.AsyncClient]
    """A client for requests that take so many seconds at most."""

    async def __call__(self, deadline: float) -> Revocation:
        """Have it revoked, and ask whether it is. Raises VaultRefused, VaultUnavailable, IssuerUnavailable."""
        if self.endpoints.revocation is None:
            return Revocation(False, "its issuer has no revocation endpoint")
        async with self.connect(_SECONDS) as http:
            known = await self._active(http, deadline)
            for token, kind in self.tokens:
                form = Form((("token", token), ("token_type_hint", kind)))
                said = await self._asked(http, self.endpoints.revocation, form, deadline)
                if said.status != _OK:
                    return Revocation(False, f"its issuer did not revoke it: {said.status} {said.code}".rstrip())
            if known is not True:
                return Revocation(False, "its issuer took the revocation, and does not say whether it is still active")
            if await self._active(http, deadline) is not False:
                return Revocation(False, "its issuer took the revocation, and calls it active all the same")
        return Revocation(True)

    async def _active(self, http: httpx.AsyncClient, deadline: float) -> bool | None:
        """Whether the issuer calls the access token active; None where it does not say."""
        if self.endpoints.introspection is None:
            return None
        form = Form((("token", self.tokens[0][0]), ("token_type_hint", "access_token")))
        said = await self._asked(http, self.endpoints.introspection, form, deadline)
        active = said.document.get("active") if said.status == _OK and said.document is not None else None
        return active if isinstance(active, bool) else None

    async def _asked(self, http: httpx.AsyncClient, url: str, form: Form, deadline: float) -> Said:
        """Asked until it answers: doing either twice does no harm."""

        async def once() -> Said:
            seconds = max(0.1, min(_SECONDS, deadline - self.clock.monotonic()))
            said = await post(http, url, await self.client.shown(form, deadline=deadline), seconds=seconds)
            if said.status >= 500:
                raise IssuerUnavailable(f"its issuer answered {said.status}", outcome=Outcome.UNKNOWN)
            return said

        return await retrying(once, clock=self.clock, deadline=deadline, repeatable=True)
