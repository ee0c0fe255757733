"""Who we are to an authorization server, shown anew with each request (RFC 6749, 2.3.1; RFC 7523, 2.2)."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from functools import partial
from typing import Any
from urllib.parse import quote_plus

from orchestrator.credentials.issuers.oauth2.endpoint import Form
from orchestrator.credentials.issuers.oauth2.signing import Ask, TransitSigner
from orchestrator.credentials.types import IssueRequest
from orchestrator.errors import GrantRefused
from orchestrator.issuers.oauth2 import KvSecret, OAuth2Server
from orchestrator.ledger.ids import new_lease_id
from orchestrator.secret import Secret
from orchestrator.vault.fields import section

ASSERTION_SECONDS = 60
"""How long an assertion is valid: for one request, and clocks that differ."""

_EARLIER = 5
_ASSERTION = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


class Client:
    """The orchestrator as the client of one server, for one lease."""

    def __init__(self, server: OAuth2Server, request: IssueRequest, signer: TransitSigner) -> None:
        self._server = server
        self._request = request
        self._signer = signer

    async def shown(self, form: Form, *, deadline: float) -> Form:
        """The form with what shows who we are. Raises VaultRefused, VaultUnavailable, GrantRefused."""
        client = self._server.client
        if client.method in ("private_key_jwt", "client_secret_jwt"):
            claims = {"iss": client.id, "sub": client.id, "aud": client.audience or self._server.issuer}
            assertion = await self.signed(claims, deadline=deadline)
            return form.plus(
                ("client_id", client.id), ("client_assertion_type", _ASSERTION), ("client_assertion", assertion)
            )
        if client.secret is None:  # an assertion says who asks (RFC 7521, 4.1); nothing else that is sent does
            return form if form.has("assertion") else form.plus(("client_id", client.id))
        secret = await self._kept(client.secret, deadline)
        if client.method == "client_secret_post":
            return form.plus(("client_id", client.id), ("client_secret", secret))
        both = f"{quote_plus(client.id)}:{quote_plus(secret.reveal())}"  # RFC 6749, 2.3.1: form-encoded first
        basic = Secret(base64.b64encode(both.encode()).decode())
        self._request.remember(basic)
        return form.plus(headers={"authorization": Secret(f"Basic {basic.reveal()}")})

    async def signed(self, claims: Mapping[str, Any], *, deadline: float, about_somebody: bool = False) -> Secret:
        """An assertion with these claims, which is good for this once."""
        server = self._server
        key = server.assertion.key if about_somebody and server.assertion else server.client.key
        assert key is not None, "the declaration has one where it is asked for"
        now = int(self._request.clock.now().timestamp())
        times = {"iat": now, "nbf": now - _EARLIER, "exp": now + ASSERTION_SECONDS, "jti": new_lease_id()}
        return Secret(await self._signer.jwt(self.ask(deadline), key, {**claims, **times}))

    def ask(self, deadline: float) -> Ask:
        """Asks Vault with the step's own token."""
        return partial(self._request.ask_on_the_way, deadline=deadline)

    async def _kept(self, secret: KvSecret, deadline: float) -> Secret:
        body = await self.ask(deadline)("get", secret.resource, None)
        value = section(section(body, "data", secret.resource), "data", secret.resource).get(secret.key)
        if not isinstance(value, str) or not value:
            scope = self._request.scope
            raise GrantRefused(
                f"the secret `{secret.resource}` has no text under `{secret.key}`",
                grant=scope.name,
                path=secret.resource,
                hint="store the client's secret there",
            )
        found = Secret(value)
        self._request.remember(found)
        return found
