"""Where the endpoints of an authorization server are: declared, or told by its metadata (RFC 8414, OIDC Discovery)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from orchestrator.credentials.faults import IssuerUnavailable
from orchestrator.issuers.oauth2 import OAuth2Server
from orchestrator.pep import fetching
from orchestrator.pep.errors import IssuerUnreachable
from orchestrator.vault.faults import Outcome

if TYPE_CHECKING:
    import httpx

_MOST_BYTES = 1 << 18
_KEPT_SECONDS = 300
_ASKED_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where an authorization server is asked for what."""

    token: str
    revocation: str | None = None
    introspection: str | None = None


class Metadata:
    """The endpoints of servers, each asked for once in a while."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, Endpoints]] = {}

    async def endpoints(self, http: httpx.AsyncClient, server: OAuth2Server) -> Endpoints:
        """Raises IssuerUnavailable where the server does not tell."""
        if server.token_endpoint is not None:
            return Endpoints(server.token_endpoint, server.revocation_endpoint, server.introspection_endpoint)
        until, found = self._known.get(server.issuer, (0.0, None))
        if found is None or time.monotonic() > until:
            found = await _discovered(http, server)
            self._known[server.issuer] = time.monotonic() + _KEPT_SECONDS, found
        return found


async def _discovered(http: httpx.AsyncClient, server: OAuth2Server) -> Endpoints:
    url = metadata_url(server)
    try:
        request = http.build_request("GET", url)
        answer = await fetching.json_object(http, request, most_bytes=_MOST_BYTES, seconds=_ASKED_SECONDS)
    except IssuerUnreachable as error:
        raise IssuerUnavailable(f"its metadata: {error.message}", outcome=Outcome.NOT_DONE) from None
    told = answer.document
    if told.get("issuer") != server.issuer:
        raise IssuerUnavailable(
            "its metadata are of another issuer than `issuer` in declarations.yaml", outcome=Outcome.REFUSED
        )

    def endpoint(name: str) -> str | None:
        value = told.get(f"{name}_endpoint")
        if value is None:
            return None
        try:
            return fetching.confidential(str(value))
        except ValueError as error:
            raise IssuerUnavailable(f"its metadata: {name}_endpoint: {error}", outcome=Outcome.REFUSED) from None

    token = endpoint("token")
    if token is None:
        raise IssuerUnavailable("its metadata name no token_endpoint", outcome=Outcome.REFUSED)
    return Endpoints(
        token,
        server.revocation_endpoint or endpoint("revocation"),
        server.introspection_endpoint or endpoint("introspection"),
    )


def metadata_url(server: OAuth2Server) -> str:
    """OIDC appends to the issuer (Discovery 1.0, 4); OAuth puts it before the issuer's path (RFC 8414, 3)."""
    if server.discovery == "oidc":
        return server.issuer.rstrip("/") + "/.well-known/openid-configuration"
    parts = urlsplit(server.issuer)
    return urlunsplit(parts._replace(path="/.well-known/oauth-authorization-server" + parts.path.rstrip("/")))
