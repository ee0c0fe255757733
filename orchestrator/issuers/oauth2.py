"""An OAuth 2.0 authorization server, how the orchestrator is its client, and what may be asked of it at most."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from orchestrator.grants.fields import Name, OAuthScope, VaultPath
from orchestrator.grants.oauth2 import ResourceIndicator
from orchestrator.grants.scope import Scope
from orchestrator.pep.fetching import confidential

Url = Annotated[str, AfterValidator(confidential)]
Flow = Literal["client_credentials", "jwt_bearer", "token_exchange", "refresh_token"]
Text = Annotated[str, Field(min_length=1)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class KvSecret(_Model):
    """One key of a secret in a KV version 2 engine."""

    path: VaultPath
    key: Text
    mount: VaultPath = "secret"

    @property
    def resource(self) -> str:
        """Where the API reads and writes it."""
        return f"{self.mount}/data/{self.path}"


class SigningKey(_Model):
    """A key of the transit engine, which signs there and never leaves it."""

    name: Name
    algorithm: Literal["RS256", "PS256", "ES256", "EdDSA", "HS256"] = "ES256"
    """HS256 signs with an `hmac` key: a client secret that was imported."""
    key_id: Text | None = None
    """The `kid` by which the issuer knows it. Default: NAME:vVERSION, as our JWKS says it; none for a shared secret."""
    certificate_sha256: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{43}$")] | None = None
    """The thumbprint of its certificate (`x5t#S256`, base64url), for issuers that know it by that."""
    mount: VaultPath = "transit"

    @property
    def resource(self) -> str:
        """Where the API signs with it."""
        if self.algorithm == "HS256":
            return f"{self.mount}/hmac/{self.name}/sha2-256"
        return f"{self.mount}/sign/{self.name}"

    @property
    def parameters(self) -> Mapping[str, str]:
        """What a signature is asked for with, beside its `input` (Vault API, `POST /transit/sign/:name`)."""
        return _SIGNING[self.algorithm]

    @property
    def versions(self) -> str | None:
        """Where the API tells its newest version; None where nobody has to ask: a shared secret has no `kid`."""
        told = self.key_id or self.certificate_sha256 or self.algorithm == "HS256"
        return None if told else f"{self.mount}/keys/{self.name}"


_SIGNING: Mapping[str, Mapping[str, str]] = {
    "RS256": {"hash_algorithm": "sha2-256", "signature_algorithm": "pkcs1v15"},
    "PS256": {"hash_algorithm": "sha2-256", "signature_algorithm": "pss", "salt_length": "hash"},
    "ES256": {"hash_algorithm": "sha2-256", "marshaling_algorithm": "jws"},
    "EdDSA": {},
    "HS256": {},
}


class Client(_Model):
    """Who the orchestrator is to the issuer, and how it shows that (RFC 6749, 2.3; RFC 7523, 2.2)."""

    id: Text
    method: Literal["private_key_jwt", "client_secret_jwt", "client_secret_basic", "client_secret_post", "none"]
    key: SigningKey | None = None
    """Signs the client's assertions; for `client_secret_jwt` an `hmac` key with the imported secret."""
    secret: KvSecret | None = None
    """The client secret, which is then in our memory for the length of a request."""
    audience: Text | None = None
    """The `aud` of its assertions. Default: the issuer."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        wants_key = self.method in ("private_key_jwt", "client_secret_jwt")
        wants_secret = self.method in ("client_secret_basic", "client_secret_post")
        if (self.key is not None) != wants_key or (self.secret is not None) != wants_secret:
            takes = "a `key`" if wants_key else "a `secret`" if wants_secret else "neither `key` nor `secret`"
            raise ValueError(f"`{self.method}` takes {takes}")
        if self.key is not None and (self.key.algorithm == "HS256") != (self.method == "client_secret_jwt"):
            raise ValueError("`client_secret_jwt` is signed with HS256, `private_key_jwt` with another algorithm")
        return self


class Assertion(_Model):
    """A JWT about somebody that the issuer takes for a token: as a grant (RFC 7523) or to exchange it (RFC 8693)."""

    key: SigningKey | None = None
    identity_role: Annotated[str, Field(pattern=r"^[\w.-]{1,128}$")] | None = None
    """Instead of a key: a role of Vault's identity engine, whose tokens have claims that an admin has fixed."""
    issuer: Text | None = None
    """The `iss`. Default: the client's id."""
    audience: Text | None = None
    """The `aud`. Default: the issuer."""
    subjects: list[Text] = Field(default_factory=list)
    """On whose behalf tokens may be asked for; nobody else. Empty: only for itself."""
    scope_claim: bool = False
    """Whether the scope stands in the assertion and not beside it."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.key is None) == (self.identity_role is None):
            raise ValueError("an assertion is signed by a `key`, or is a token of an `identity_role`")
        if self.identity_role is not None and (self.subjects or self.scope_claim):
            raise ValueError("the claims of an `identity_role` are fixed in Vault: no `subjects`, no `scope_claim`")
        return self


class OAuth2Server(_Model):
    """An authorization server as it is to be asked. Where it is found, who we are to it, and what it may be asked."""

    kind: Literal["oauth2"]
    issuer: Url
    """Its identifier (RFC 8414, section 2), exactly."""
    discovery: Literal["oidc", "oauth"] | None = None
    """Its endpoints are found by its metadata: OpenID Connect Discovery, or RFC 8414."""
    token_endpoint: Url | None = None
    revocation_endpoint: Url | None = None
    introspection_endpoint: Url | None = None
    ca: Path | None = None
    """A file of certificates in PEM, beside this one if it is relative: the authorities that are trusted instead of
    the system's."""
    flow: Flow
    client: Client
    assertion: Assertion | None = None
    refresh_token: KvSecret | None = None
    scopes: list[OAuthScope] = Field(default_factory=list)
    """What grants may name; nothing else is asked for."""
    resources: list[ResourceIndicator] = Field(default_factory=list)
    detail_types: list[Text] = Field(default_factory=list)
    asks: Text | None = None
    """The `scope` that is sent instead of the grant's, where the issuer has fixed it: `https://.../.default`."""
    scope_in: Literal["answer", "token", "unsaid"] = "answer"
    """What says which scope a token has: the answer, or its own claim `scope`, `scp` or `roles`. `unsaid`: neither,
    where the issuer leaves it out if it is the one that was asked for (RFC 6749, 5.1)."""
    revoke: bool | None = None
    """Whether tokens are revoked when their step ends. Default: yes, but not in the flow `refresh_token`, where some
    issuers revoke the refresh token along with the access token."""
    parameters: dict[Annotated[str, Field(pattern=r"^[a-z_]{1,64}$")], Text] = Field(default_factory=dict)
    """Further parameters of the request, such as Auth0's `audience`."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.discovery is None) == (self.token_endpoint is None):
            raise ValueError("either `discovery` or a `token_endpoint` says where tokens are asked for")
        if (self.assertion is not None) != (self.flow in ("jwt_bearer", "token_exchange")):
            raise ValueError("`assertion` belongs to the flows `jwt_bearer` and `token_exchange`")
        if (self.refresh_token is not None) != (self.flow == "refresh_token"):
            raise ValueError("`refresh_token` belongs to the flow `refresh_token`")
        if self.flow == "client_credentials" and self.client.method == "none":
            raise ValueError("`client_credentials` needs a client that can show who it is")
        if taken := sorted(_OURS & self.parameters.keys()):
            raise ValueError(f"`parameters` cannot have {', '.join(taken)}: the flow and the grant say those")
        return self

    @property
    def revokes(self) -> bool:
        """Whether tokens are revoked when their step ends."""
        return self.flow != "refresh_token" if self.revoke is None else self.revoke

    def signing_keys(self) -> list[SigningKey]:
        """The transit keys that are signed with."""
        found = [self.client.key, self.assertion.key if self.assertion else None]
        return [key for key in found if key is not None]


_OURS = frozenset(
    (
        *("grant_type", "scope", "resource", "authorization_details", "assertion", "refresh_token"),
        *("client_id", "client_secret", "client_assertion", "client_assertion_type"),
        *("subject_token", "subject_token_type", "actor_token", "actor_token_type"),
    )
)
"""Parameters that no declaration sets."""


def beyond(server: OAuth2Server, scope: Scope) -> str | None:
    """What a grant asks of a server although it is not declared for it; None where everything is.

    A subject that is not known yet is not looked at.
    """
    if more := sorted(set(scope.scopes) - set(server.scopes)):
        return f"the scope `{more[0]}`"
    if scope.audience is not None and scope.audience not in server.resources:
        return f"the resource `{scope.audience}`"
    if more := sorted({str(each.get("type")) for each in scope.details} - set(server.detail_types)):
        return f"details of the type `{more[0]}`"
    if scope.subject is None or "${{" in scope.subject:
        return None
    if server.assertion is None or scope.subject not in server.assertion.subjects:
        return f"a token on behalf of `{scope.subject}`"
    return None
