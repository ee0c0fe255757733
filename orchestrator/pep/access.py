"""Access tokens after RFC 9068, and whether one permits what a request does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from orchestrator.jsontypes import JsonObject, JsonValue
from orchestrator.pep import details as rich
from orchestrator.pep.details import Operation
from orchestrator.pep.errors import Reason, TokenRefused
from orchestrator.pep.jwt.claims import Audience, Claims, Expected

_REQUIRED = frozenset({"iss", "exp", "aud", "sub", "client_id", "iat", "jti"})
"""RFC 9068, 2.2."""


def access_tokens(
    issuer: str,
    *audiences: str,
    algorithms: frozenset[str] = frozenset({"ES256", "EdDSA", "Ed25519"}),
    audience: Audience = Audience.AMONG,
    leeway: float = 5,
    longest_life: float | None = None,
) -> Expected:
    """What is expected of the access tokens of an issuer (RFC 9068, 4). Raises ValueError where it makes no sense."""
    return Expected(
        issuer,
        frozenset(audiences),
        algorithms=algorithms,
        types=frozenset({"at+jwt"}),
        required=_REQUIRED,
        audience=audience,
        leeway=leeway,
        longest_life=longest_life,
    )


class Shortfall(Enum):
    """What a token lacks for a request."""

    SCOPE = "scope"
    DETAILS = "authorization_details"


@dataclass(frozen=True, slots=True)
class AccessToken:
    """A verified token. It does not hold the token's text, so it may be logged.

    `expires`, `issued_at`: seconds since 1970. `details` is None where the token has no `authorization_details`
    (RFC 9396, 9.1). `actor`: who acts for the subject (RFC 8693, 4.1). `claims`: everything, as it came.
    """

    issuer: str
    subject: str
    audience: tuple[str, ...]
    client_id: str
    scope: frozenset[str]
    token_id: str
    expires: float
    issued_at: float
    details: tuple[JsonObject, ...] | None = None
    actor: JsonObject | None = None
    claims: Mapping[str, JsonValue] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, claims: Claims) -> AccessToken:
        """From the claims of a verified token that was expected by `access_tokens`. Raises TokenRefused."""
        client_id = claims.all.get("client_id")
        if claims.subject is None or claims.token_id is None or claims.issued_at is None:
            raise TokenRefused(Reason.MISSING_CLAIM, "it lacks a required claim")
        if not isinstance(client_id, str):
            raise TokenRefused(Reason.MISSING_CLAIM, "it lacks a required claim", claim="client_id")
        return cls(
            claims.issuer,
            claims.subject,
            claims.audience,
            client_id,
            scope_of(claims.all.get("scope")),
            claims.token_id,
            claims.expires,
            claims.issued_at,
            details_of(claims.all),
            _actor(claims.all),
            claims.all,
        )


def shortfall(token: AccessToken, *, scope: str | None = None, operation: Operation | None = None) -> Shortfall | None:
    """What the token lacks, None if nothing. `scope`: one or several (RFC 6749, 3.3), all of which are needed.

    Raises ValueError where neither is demanded: that would permit everything to everybody.
    """
    if not (scope or "").split() and operation is None:
        raise ValueError("nothing is demanded of the token: name a scope, an operation, or both")
    if not set((scope or "").split()) <= token.scope:
        return Shortfall.SCOPE
    if operation is not None and not rich.permits(token.details or (), operation):
        return Shortfall.DETAILS
    return None


def permits(token: AccessToken, *, scope: str | None = None, operation: Operation | None = None) -> bool:
    """Whether the token lacks nothing (`shortfall`)."""
    return shortfall(token, scope=scope, operation=operation) is None


def scope_of(value: JsonValue) -> frozenset[str]:
    """The scopes of a `scope` (RFC 8693, 4.2): texts between blanks. What is no text grants nothing."""
    return frozenset(value.split(" ")) - {""} if isinstance(value, str) else frozenset()


def details_of(claims: Mapping[str, JsonValue]) -> tuple[JsonObject, ...] | None:
    """`authorization_details`: a list of objects, each with a `type` (RFC 9396, 2). Raises TokenRefused."""
    if "authorization_details" not in claims:
        return None
    listed = claims["authorization_details"]
    if not isinstance(listed, list) or not all(_has_type(element) for element in listed):
        raise TokenRefused(Reason.CLAIM_TYPE, "a claim is not of its type", claim="authorization_details")
    return tuple(listed)


def _has_type(element: JsonValue) -> bool:
    return isinstance(element, Mapping) and isinstance(element.get("type"), str)


def _actor(claims: Mapping[str, JsonValue]) -> JsonObject | None:
    actor = claims.get("act")
    if "act" in claims and not isinstance(actor, Mapping):
        raise TokenRefused(Reason.CLAIM_TYPE, "a claim is not of its type", claim="act")
    return actor if isinstance(actor, Mapping) else None
