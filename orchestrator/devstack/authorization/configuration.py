"""What an authorization server knows, as data: clients, resources, issuers that it trusts, accounts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from orchestrator.devstack.authorization.misbehaviours import Misbehaviour
from orchestrator.jsontypes import JsonObject, JsonValue
from orchestrator.secret import Secret


class AuthMethod(StrEnum):
    """How a client authenticates (RFC 7591, 2; OpenID Connect Core 1.0, 9)."""

    SECRET_BASIC = "client_secret_basic"  # noqa: S105 - a name, no password
    SECRET_POST = "client_secret_post"  # noqa: S105
    SECRET_JWT = "client_secret_jwt"  # noqa: S105
    PRIVATE_KEY_JWT = "private_key_jwt"
    NONE = "none"


class GrantType(StrEnum):
    """What a client may present for a token (RFC 6749, 7523, 8693)."""

    CLIENT_CREDENTIALS = "client_credentials"
    REFRESH_TOKEN = "refresh_token"  # noqa: S105
    JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
    TOKEN_EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"  # noqa: S105


class TokenFormat(StrEnum):
    """Signed tokens (RFC 9068) can be neither introspected nor revoked; opaque ones can."""

    JWT = "jwt"
    OPAQUE = "opaque"


class Use(StrEnum):
    """What the JWT of a trusted issuer may be presented as."""

    JWT_BEARER = "jwt-bearer"
    SUBJECT = "token-exchange"
    ACTOR = "actor"


@dataclass(frozen=True, slots=True)
class Client:
    """`secret` is for the methods with one (32 characters at least for `client_secret_jwt`), and for private keys one
    of `jwks` and `jwks_uri`.

    `scopes`: those it may have, None for all; what else it asks for is left out silently, unless the configuration
    refuses it. `default_resource`: for requests that name none. `introspects`: the audiences whose tokens it may
    introspect besides its own. `rotates`: each use of a refresh token gives a new one (RFC 9700, 4.14.2).
    """

    client_id: str
    auth_method: AuthMethod
    grant_types: tuple[GrantType, ...] = (GrantType.CLIENT_CREDENTIALS,)
    secret: Secret | None = None
    jwks: JsonObject | None = None
    jwks_uri: str | None = None
    scopes: tuple[str, ...] | None = None
    details_types: tuple[str, ...] = ()
    default_resource: str | None = None
    introspects: tuple[str, ...] = ()
    rotates: bool = True
    requires_dpop: bool = False

    def document(self) -> JsonObject:
        """As the server reads it, with its secret."""
        return {
            "client_id": self.client_id,
            "auth_method": self.auth_method,
            "grant_types": list(self.grant_types),
            "secret": self.secret.reveal() if self.secret else None,
            "jwks": self.jwks,
            "jwks_uri": self.jwks_uri,
            "scopes": None if self.scopes is None else list(self.scopes),
            "details_types": list(self.details_types),
            "default_resource": self.default_resource,
            "introspects": list(self.introspects),
            "rotates": self.rotates,
            "requires_dpop": self.requires_dpop,
        }


@dataclass(frozen=True, slots=True)
class Resource:
    """A protected resource (RFC 8707): `indicator` is a URI, `ttl` in seconds. `audience` is the indicator by default.

    `algorithm`, RS256 or ES256, signs the tokens that are JWTs.
    """

    indicator: str
    scopes: tuple[str, ...]
    format: TokenFormat = TokenFormat.JWT
    ttl: int = 300
    audience: str | None = None
    algorithm: str = "ES256"

    def document(self) -> JsonObject:
        """As the server reads it."""
        return {
            "indicator": self.indicator,
            "scopes": list(self.scopes),
            "format": self.format,
            "ttl": self.ttl,
            "audience": self.audience,
            "algorithm": self.algorithm,
        }


@dataclass(frozen=True, slots=True)
class TrustedIssuer:
    """Whose JWTs are believed. One of `jwks` and `jwks_uri` is given.

    `subjects`: which account each `sub` is; None where every `sub` is the account of that name. `audiences`: what
    `aud` may be, None for the server's issuer and its token endpoint. `clients`: who may present them, None for all.
    `longest_life` in seconds. `once`: a `jti` is needed and counts once (RFC 7523, 3).
    """

    issuer: str
    uses: tuple[Use, ...]
    jwks: JsonObject | None = None
    jwks_uri: str | None = None
    subjects: Mapping[str, str] | None = None
    audiences: tuple[str, ...] | None = None
    clients: tuple[str, ...] | None = None
    longest_life: int = 3600
    once: bool = False

    def document(self) -> JsonObject:
        """As the server reads it."""
        return {
            "issuer": self.issuer,
            "uses": list(self.uses),
            "jwks": self.jwks,
            "jwks_uri": self.jwks_uri,
            "subjects": None if self.subjects is None else dict(self.subjects),
            "audiences": None if self.audiences is None else list(self.audiences),
            "clients": None if self.clients is None else list(self.clients),
            "longest_life": self.longest_life,
            "once": self.once,
        }


@dataclass(frozen=True, slots=True)
class Delegation:
    """The scopes that a client may have for an account, at one resource or at all that have them."""

    client_id: str
    subject: str
    scopes: tuple[str, ...]
    resource: str | None = None

    def document(self) -> JsonObject:
        """As the server reads it."""
        return {
            "client_id": self.client_id,
            "subject": self.subject,
            "scopes": list(self.scopes),
            "resource": self.resource,
        }


@dataclass(frozen=True, slots=True)
class DetailsType:
    """A type of `authorization_details` (RFC 9396, 2): its actions, its identifiers (None for any), and what its
    other members may be. A member that is not among them is refused."""

    name: str
    actions: tuple[str, ...]
    identifiers: tuple[str, ...] | None = None
    members: Mapping[str, tuple[str, ...]] | None = None

    def document(self) -> JsonObject:
        """As the server reads it."""
        members: dict[str, JsonValue] = {name: list(values) for name, values in (self.members or {}).items()}
        return {
            "name": self.name,
            "actions": list(self.actions),
            "identifiers": None if self.identifiers is None else list(self.identifiers),
            "members": members,
        }


@dataclass(frozen=True, slots=True)
class Configuration:
    """Everything that one server knows.

    `accounts` are mailboxes. `refuse_excess_scope`: answer `invalid_scope` to who asks for more than may be had,
    instead of leaving it out silently (RFC 6749, 3.3 permits both).
    """

    clients: tuple[Client, ...]
    resources: tuple[Resource, ...]
    issuers: tuple[TrustedIssuer, ...] = ()
    accounts: tuple[str, ...] = ()
    delegations: tuple[Delegation, ...] = ()
    details_types: tuple[DetailsType, ...] = ()
    misbehaviours: tuple[Misbehaviour, ...] = ()
    refuse_excess_scope: bool = False

    def document(self) -> JsonObject:
        """As the server reads it, with the secrets of the clients."""
        return {
            "clients": [each.document() for each in self.clients],
            "resources": [each.document() for each in self.resources],
            "issuers": [each.document() for each in self.issuers],
            "accounts": list(self.accounts),
            "delegations": [each.document() for each in self.delegations],
            "details_types": [each.document() for each in self.details_types],
            "misbehaviours": [each.document() for each in self.misbehaviours],
            "refuse_excess_scope": self.refuse_excess_scope,
        }
