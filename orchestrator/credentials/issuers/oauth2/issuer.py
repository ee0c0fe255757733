"""The issuer of `oauth2` grants: one form to the token endpoint, and an answer that is exactly what was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from orchestrator.client.possession import ProofKey
from orchestrator.credentials.issuers.oauth2.answer import Given, given, problem, secrets_in
from orchestrator.credentials.issuers.oauth2.client import Client
from orchestrator.credentials.issuers.oauth2.ending import Ending
from orchestrator.credentials.issuers.oauth2.endpoint import Form, IssuerRefused, Said, post, served
from orchestrator.credentials.issuers.oauth2.metadata import Endpoints, Metadata
from orchestrator.credentials.issuers.oauth2.refreshing import AUTHORISE, KeptToken
from orchestrator.credentials.issuers.oauth2.requests import ACCESS_TOKEN, JWT, JWT_BEARER, TOKEN_EXCHANGE, wishes
from orchestrator.credentials.issuers.oauth2.signing import TransitSigner
from orchestrator.credentials.issuers.oauth2.trust import Trust
from orchestrator.credentials.types import Issued, IssueRequest, Revocation, Revoke
from orchestrator.errors import GrantRefused
from orchestrator.grants.credential import Credential
from orchestrator.issuers.oauth2 import OAuth2Server, beyond
from orchestrator.network.origins import origin
from orchestrator.secret import Secret
from orchestrator.vault.fields import section, text
from orchestrator.vault.retry import retrying

if TYPE_CHECKING:
    import httpx

_LEAST_SECONDS, _MOST_SECONDS = 5.0, 60.0
"""How long an answer is waited for: longer than the step may take if need be, so that its outcome is known."""

_NONCE = "use_dpop_nonce"


class OAuth2Issuer:
    """Asks the declared authorization server. What shows who we are is in Vault, and stays there where it can."""

    def __init__(self) -> None:
        self._metadata = Metadata()
        self._signer = TransitSigner()
        self._trust = Trust()

    async def issue(self, request: IssueRequest) -> Issued:
        """Ask for one token (RFC 6749, 4.4, 6; RFC 7523, 2.1; RFC 8693, 2.1). It is asked for once.

        Raises GrantRefused, VaultRefused, VaultUnavailable, or IssuerUnavailable, which says whether there may be one.
        """
        scope, server = request.scope, _server(request)
        if (more := beyond(server, scope)) is not None:
            raise _refused(request, f"`{scope.issuer}` may not be asked for {more}", _DECLARE)
        client = Client(server, request, self._signer)
        key = ProofKey.generate(request.clock) if scope.proof == "dpop" else None
        if key is not None:
            request.remember(key.private_jwk)
        async with self._trust.client(server, _MOST_SECONDS) as http:
            asking = _Asking(http, self._metadata, server, client, request, key)
            answer = await asking.answer()
        wrong = asking.lost or problem(scope, server, answer)
        fields = {"token": answer.token} | ({} if key is None else {"dpop_key": key.private_jwk})
        return Issued(
            Credential(scope.name, scope.kind, answer.seconds, fields=fields),
            answer.seconds,
            subject=answer.subject,
            valid_until=request.clock.now() + timedelta(seconds=answer.seconds) if answer.seconds else None,
            revoke=_revoke(server, answer, asking.endpoints, client, request, self._trust),
            refused=None if wrong is None else _refused(request, *wrong),
        )


class _Asking:
    """One request for a token, by the flow that is declared."""

    def __init__(
        self,
        http: httpx.AsyncClient,
        metadata: Metadata,
        server: OAuth2Server,
        client: Client,
        request: IssueRequest,
        key: ProofKey | None,
    ) -> None:
        self._http = http
        self._metadata = metadata
        self._server = server
        self._client = client
        self._request = request
        self._key = key
        self.endpoints: Endpoints | None = None
        """Where it was asked."""
        self.lost: tuple[str, str] | None = None
        """What became of a refresh token that could not be stored, and what to do about it."""

    async def answer(self) -> Given:
        """The answer, whatever it gives. Raises as `issue` does."""
        wanted = Form(tuple(wishes(self._server, self._request.scope)))
        match self._server.flow:
            case "client_credentials":
                document = await self._served(wanted.plus(("grant_type", "client_credentials")))
            case "jwt_bearer":
                assertion = await self._assertion()
                document = await self._served(wanted.plus(("grant_type", JWT_BEARER), ("assertion", assertion)))
            case "token_exchange":
                document = await self._served(
                    wanted.plus(
                        ("grant_type", TOKEN_EXCHANGE),
                        ("subject_token", await self._assertion()),
                        ("subject_token_type", JWT),
                        ("requested_token_type", ACCESS_TOKEN),
                    )
                )
            case "refresh_token":
                return await self._refreshed(wanted)
        return self._given(document)

    async def _refreshed(self, wanted: Form) -> Given:
        assert self._server.refresh_token is not None
        kept = KeptToken(self._server.refresh_token, self._request)
        held = await kept.take()
        form = wanted.plus(("grant_type", "refresh_token"), ("refresh_token", held.token))
        try:
            document = await self._served(form)
        except IssuerRefused as refusal:
            await kept.give_back(held, None)
            raise kept.why(held, refusal.message) from refusal
        answer = self._given(document)
        if not await kept.give_back(held, answer.refresh_token):
            self.lost = "the refresh token that the issuer gave could not be stored", AUTHORISE
        return answer

    def _given(self, document: Mapping[str, Any]) -> Given:
        for secret in secrets_in(document):
            self._request.remember(secret)
        return given(document, self._request.clock.now().timestamp())

    async def _assertion(self) -> Secret:
        """A JWT about ourselves, or about the one on whose behalf the token is."""
        request, declared = self._request, self._server.assertion
        assert declared is not None
        deadline = request.attempt.deadline
        if declared.identity_role is not None:
            path = f"identity/oidc/token/{declared.identity_role}"
            body = await self._client.ask(deadline)("get", path, None)
            return Secret(text(section(body, "data", path), "token", path))
        issuer = declared.issuer or self._server.client.id
        claims: dict[str, Any] = {
            "iss": issuer,
            "sub": request.scope.subject or issuer,
            "aud": declared.audience or self._server.issuer,
        }
        if declared.scope_claim:
            claims["scope"] = " ".join(request.scope.scopes)
        return await self._client.signed(claims, deadline=deadline, about_somebody=True)

    async def _served(self, form: Form) -> Mapping[str, Any]:
        request = self._request
        deadline = request.attempt.deadline

        async def once() -> Said:
            self.endpoints = await self._metadata.endpoints(self._http, self._server)
            url = self.endpoints.token
            said = await self._posted(url, form)
            if self._key is not None and said.code == _NONCE and said.nonce is not None:
                said = await self._posted(url, form, nonce=said.nonce)
            return said

        said = await retrying(once, clock=request.clock, deadline=deadline, repeatable=False, stop=request.stop)
        return served(said, origin(self._server.issuer))

    async def _posted(self, url: str, form: Form, *, nonce: str | None = None) -> Said:
        request = self._request
        shown = await self._client.shown(form, deadline=request.attempt.deadline)
        if self._key is not None:
            shown = shown.plus(headers={"dpop": self._key.proof("POST", url, nonce=nonce or "")})
        left = request.attempt.deadline - request.clock.monotonic()
        return await post(self._http, url, shown, seconds=min(max(left, _LEAST_SECONDS), _MOST_SECONDS))


def _server(request: IssueRequest) -> OAuth2Server:
    server = request.issuers.get(request.scope.issuer or "")
    if not isinstance(server, OAuth2Server):
        raise _refused(
            request,
            f"no authorization server `{request.scope.issuer}` is declared",
            "declare it under `issuers` in declarations.yaml, and name that file in ORCHESTRATOR_ISSUERS",
        )
    return server


def _refused(request: IssueRequest, message: str, hint: str) -> GrantRefused:
    return GrantRefused(message, grant=request.scope.name, path=request.scope.resource, by="orchestrator", hint=hint)


def _revoke(
    server: OAuth2Server,
    answer: Given,
    endpoints: Endpoints | None,
    client: Client,
    request: IssueRequest,
    trust: Trust,
) -> Revoke:
    assert endpoints is not None, "it was asked there"
    if not server.revokes:

        async def keep(deadline: float) -> Revocation:
            return Revocation(False, "its issuer would revoke the refresh token with it")

        return keep
    tokens = [(answer.token, "access_token")]
    if answer.refresh_token is not None and server.flow != "refresh_token":
        tokens.append((answer.refresh_token, "refresh_token"))
    return Ending(tokens, endpoints, client, request.clock, partial(trust.client, server))


_DECLARE = "an admin adds it to the issuer in declarations.yaml, if that is meant"
