"""The endpoints as operations: what the routes and the OpenAPI document are made from."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel

from orchestrator.server.api.oauth.documents import (
    OAuthErrorDocument,
    RevocationDocument,
    RevocationRequest,
    TokenDocument,
    TokenRequest,
)
from orchestrator.server.api.oauth.endpoints import OAuth
from orchestrator.server.api.oauth.forms import MEDIA_TYPE
from orchestrator.server.api.operations import Operation
from orchestrator.server.api.questions import IntrospectionDocument, IntrospectionRequest

TOKEN, INTROSPECT, REVOKE = "/oauth/token", "/oauth/introspect", "/oauth/revoke"

_ERRORS: Mapping[int, tuple[str, type[BaseModel]]] = {
    400: ("An error of RFC 6749, 5.2", OAuthErrorDocument),
    401: ("`invalid_client`: it is not known who calls", OAuthErrorDocument),
    413: ("`invalid_request`: too large", OAuthErrorDocument),
    429: ("`temporarily_unavailable`: the agent asks too often", OAuthErrorDocument),
    500: ("`server_error`", OAuthErrorDocument),
    503: ("`temporarily_unavailable`: see `Retry-After`", OAuthErrorDocument),
}

OAUTH = (
    Operation(
        "POST",
        TOKEN,
        "exchangeToken",
        "Exchange the agent's token for that of a tool",
        "A call of a tool that hands over a token (RFC 8693). With a proof of possession in the header DPoP the token "
        "is bound to its key (RFC 9449).",
        OAuth.token,
        {200: ("The token of the tool", TokenDocument)},
        body=TokenRequest,
        body_required=True,
        body_type=MEDIA_TYPE,
        may_have_key=True,
        headers=("DPoP",),
        errors=_ERRORS,
        known_by_body=True,
    ),
    Operation(
        "POST",
        INTROSPECT,
        "introspectToken",
        "Whether a token is active",
        "For services that are declared: of tokens for their own audience (RFC 7662).",
        OAuth.introspect,
        {200: ("What it is, or that it is not active", IntrospectionDocument)},
        body=IntrospectionRequest,
        body_required=True,
        body_type=MEDIA_TYPE,
        errors={**_ERRORS, 403: ("`insufficient_scope`: only services may ask", OAuthErrorDocument)},
    ),
    Operation(
        "POST",
        REVOKE,
        "revokeToken",
        "Give a token back",
        "By the agent that it was handed over to (RFC 7009). What is no token any more is as good as given back.",
        OAuth.revoke,
        {200: ("It is not active any more, or never was", RevocationDocument)},
        body=RevocationRequest,
        body_required=True,
        body_type=MEDIA_TYPE,
        errors=_ERRORS,
    ),
)
