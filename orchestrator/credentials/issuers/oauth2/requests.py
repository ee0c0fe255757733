"""The parameters with which an authorization server is asked for a token."""

from __future__ import annotations

import json
from collections.abc import Iterator

from orchestrator.grants.scope import Scope
from orchestrator.issuers.oauth2 import OAuth2Server

JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
TOKEN_EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"  # noqa: S105 -- RFC 8693, 2.1
ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105 -- RFC 8693, 3
JWT = "urn:ietf:params:oauth:token-type:jwt"


def wishes(server: OAuth2Server, scope: Scope) -> Iterator[tuple[str, str]]:
    """The parameters that say what the token is for."""
    in_assertion = server.assertion is not None and server.assertion.scope_claim
    if scope.scopes and not in_assertion:
        yield "scope", server.asks or " ".join(scope.scopes)
    if scope.audience is not None:
        yield "resource", scope.audience
    if scope.details:
        yield "authorization_details", json.dumps(list(scope.details), separators=(",", ":"), sort_keys=True)
    yield from server.parameters.items()
