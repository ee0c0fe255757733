"""Access tokens of authorization servers that an admin has declared: what a step may ask of them."""

from __future__ import annotations

from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from orchestrator.grants.fields import Detail, GrantModel, Name, OAuthScope


def _indicator(value: str) -> str:
    if "#" in value or not urlsplit(value).scheme or any(ord(char) <= 32 for char in value):
        raise ValueError("a resource is an absolute URI without a fragment, such as https://mail.example")
    return value


ResourceIndicator = Annotated[str, AfterValidator(_indicator)]
"""The service that a token is for (RFC 8707, section 2)."""


class OAuth2Grant(GrantModel):
    """A short-lived access token of an OAuth 2.0 authorization server, with exactly the scope that is named here.

    An answer with another scope is refused, and so is one that lives for longer than `ttl`.
    """

    kind: Literal["oauth2"]
    issuer: Name = Field(description="The authorization server, by its name under `issuers` in declarations.yaml.")
    scope: list[OAuthScope] = Field(default_factory=list, description="OAuth scopes (RFC 6749, 3.3), nothing broader.")
    resource: ResourceIndicator | None = Field(
        default=None, description="The one service that the token is for (RFC 8707)."
    )
    subject: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        description="On whose behalf, where the issuer takes that: the `sub` of the assertion, such as one mailbox. "
        "May be a `${{ }}` expression, which is bound when the token is issued.",
    )
    details: Annotated[list[Detail], Field(min_length=1)] | None = Field(
        default=None,
        description="What the token is for, piece by piece: `authorization_details` (RFC 9396). Values may contain "
        "`${{ }}` expressions, which are bound when the token is issued.",
    )
    proof: Literal["dpop"] | None = Field(
        default=None,
        description="Only whoever holds the key that is made for it can use the token (RFC 9449).",
    )

    @model_validator(mode="after")
    def _for_something(self) -> Self:
        if not self.scope and not self.details:
            raise ValueError("an `oauth2` grant says what it opens: `scope`, `details`, or both")
        return self
