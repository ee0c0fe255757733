"""What an authorization server may be told to do wrong: each is something that servers do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from orchestrator.jsontypes import JsonObject


class Kind(StrEnum):
    """The token beneath is always issued, revoked or introspected by the real server first.

    Scope and expiry are not only said: the token really is wider, narrower, or longer-lived.
    """

    WIDER_SCOPE = "wider_scope"
    """`scope` is granted besides what was asked for, and named in the answer even where the client may not have it."""
    NARROWER_SCOPE = "narrower_scope"
    """Of what was asked for only `scope` is granted; without it the first."""
    NO_SCOPE = "no_scope"
    NO_EXPIRES_IN = "no_expires_in"
    LONGER_EXPIRY = "longer_expiry"
    """The token lives for `seconds`."""
    OTHER_TOKEN_TYPE = "other_token_type"  # noqa: S105 - a name, no password
    UNASKED_REFRESH_TOKEN = "unasked_refresh_token"  # noqa: S105
    GARBAGE = "garbage"
    """Status 200 and a JSON text whose last character is missing."""
    HTML = "html"
    """Status 200 and a page."""
    SERVER_ERROR = "server_error"
    """`status`, 500 by default, and `Retry-After` where `retry_after` is given."""
    REDIRECT = "redirect"
    """`status`, 307 by default, to `location`, by default a path of the server that does not exist."""
    LATE = "late"
    """The answer comes after `seconds`; the token was issued before."""
    HANG_UP = "hang_up"
    """The token is issued, and the connection closed without an answer."""
    REVOCATION_IGNORED = "revocation_ignored"
    """Revocation answers 200 and revokes nothing."""
    ALWAYS_INACTIVE = "always_inactive"
    """Introspection answers `active: false`, whoever asks for whatever."""


class Endpoint(StrEnum):
    """Where. Misbehaviours of revocation and introspection have their own."""

    TOKEN = "token"  # noqa: S105
    REVOCATION = "revocation"
    INTROSPECTION = "introspection"


_STATUS = {Kind.SERVER_ERROR: 500, Kind.REDIRECT: 307}


@dataclass(frozen=True, slots=True)
class Misbehaviour:
    """One of them, for the requests of a client, of a grant type, or for all; `times` as often, None for always."""

    kind: Kind
    endpoint: Endpoint = Endpoint.TOKEN
    client_id: str | None = None
    grant_type: str | None = None
    times: int | None = None
    scope: str | None = None
    seconds: float | None = None
    token_type: str = "N_A"  # noqa: S105 - RFC 8693, 2.2.1: not to be used as an access token
    status: int | None = None
    retry_after: int | None = None
    location: str | None = None

    def __post_init__(self) -> None:
        if self.kind is Kind.WIDER_SCOPE and self.scope is None:
            raise ValueError("which scope is granted besides?")
        if self.kind in (Kind.LATE, Kind.LONGER_EXPIRY) and self.seconds is None:
            raise ValueError("how many seconds?")

    def document(self) -> JsonObject:
        """As the server reads it."""
        return {
            "kind": self.kind,
            "endpoint": self.endpoint,
            "client_id": self.client_id,
            "grant_type": self.grant_type,
            "times": self.times,
            "scope": self.scope,
            "seconds": self.seconds,
            "token_type": self.token_type,
            "status": self.status or _STATUS.get(self.kind),
            "retry_after": self.retry_after,
            "location": self.location,
        }
