"""An authorization server that trusts a key in Vault, and a mail service that takes its tokens, beside a stack.

They are Google's two sides of domain-wide delegation: the service account is who signs with the key, an administrator
has delegated one scope of one mailbox to it, and access tokens are opaque.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.devstack.authorization.configuration import (
    AuthMethod,
    Client,
    Configuration,
    Delegation,
    GrantType,
    Resource,
    TokenFormat,
    TrustedIssuer,
    Use,
)
from orchestrator.devstack.authorization.server import AuthorizationServer
from orchestrator.devstack.provisioned import Provisioned
from orchestrator.devstack.sample_services import Introspecting, MailService
from orchestrator.devstack.services.mail.samples import PERSONS, SUPPORT
from orchestrator.devstack.services.mail.scopes import AUDIENCE, READONLY, SCOPES
from orchestrator.issuers.declared import load_issuers
from orchestrator.issuers.oauth2 import OAuth2Server, SigningKey
from orchestrator.jsontypes import JsonObject
from orchestrator.provision.vault.admin import VaultAdmin
from orchestrator.secret import Secret
from orchestrator.vault.jwks import key_id

ISSUER = "mail"
"""The name under `issuers` that the sample's grants use."""

OTHER = "https://other.example/"
"""A second service of the authorization server, which nobody was delegated."""

_TOKEN_SECONDS = 60


@dataclass(frozen=True, slots=True)
class MailServers:
    """Both servers, and what the orchestrator is to be told of them."""

    provisioned: Provisioned
    authorization: AuthorizationServer
    service: MailService
    issuer: OAuth2Server
    issuers_file: Path
    """Declares the issuer at the address that it has here."""

    @property
    def endpoints(self) -> dict[str, str]:
        """What the sample calls the mail service."""
        return {"mail": self.service.url}

    @property
    def key(self) -> SigningKey:
        """Of the assertions."""
        return signing_key(self.issuer)

    def environment(self) -> dict[str, str]:
        """The variables that point the orchestrator at both."""
        return {"ORCHESTRATOR_ISSUERS": str(self.issuers_file), "ORCHESTRATOR_ENDPOINTS__MAIL": self.service.url}

    def log(self) -> list[dict[str, Any]]:
        """What the mail service was asked and what it decided, oldest first. Raises httpx.HTTPError."""
        found: list[dict[str, Any]] = self.state()["decisions"]
        return found

    def state(self) -> dict[str, Any]:
        """Everything that the back door of the mail service tells. Raises httpx.HTTPError."""
        import httpx

        headers = {"X-Admin-Token": self.service.admin_token.reveal()}
        with httpx.Client(trust_env=False, timeout=10, headers=headers) as client:
            answer = client.get(f"{self.service.url}/_admin/state").raise_for_status()
        document: dict[str, Any] = answer.json()
        return document


@contextmanager
def mail_servers(provisioned: Provisioned, declarations: Path, directory: Path) -> Iterator[MailServers]:
    """Run both below `directory`, for the issuer that is declared in this folder. Raises UsageError without node.

    The stack is provisioned already: the authorization server is given the public part of the key that is in its Vault.
    """
    declared = load_issuers(declarations / "declarations.yaml")[ISSUER]
    assert isinstance(declared, OAuth2Server)
    place = directory / "mail"
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    resource_server = Client(
        "mail-service", AuthMethod.SECRET_BASIC, secret=Secret(secrets.token_urlsafe(30)), introspects=(AUDIENCE,)
    )
    assert resource_server.secret is not None
    server = AuthorizationServer(place, configuration(declared, public_key(provisioned, declared), resource_server))
    with server:
        asks = Introspecting(server.introspection_endpoint, resource_server.client_id, resource_server.secret)
        with MailService(place, server.issuer, Secret("admin-" + secrets.token_hex(16)), asks) as service:
            issuer = at_address(declared, server.issuer)
            file = place / "issuers.yaml"
            write_issuers(file, {ISSUER: issuer})
            yield MailServers(provisioned, server, service, issuer, file)


def at_address(declared: OAuth2Server, issuer: str) -> OAuth2Server:
    """The same issuer where it is here, found by its metadata. Who we are to it, and what it may be asked, stays."""
    assert declared.assertion is not None
    changes = {
        "issuer": issuer,
        "discovery": "oauth",
        "token_endpoint": None,
        "revocation_endpoint": None,
        "introspection_endpoint": None,
        "assertion": declared.assertion.model_copy(update={"audience": None}),
    }
    return OAuth2Server.model_validate(declared.model_copy(update=changes).model_dump())


def write_issuers(file: Path, issuers: Mapping[str, OAuth2Server]) -> None:
    """A file for ORCHESTRATOR_ISSUERS. There is nothing secret in it."""
    from ruamel.yaml import YAML

    document = {name: issuer.model_dump(mode="json", exclude_none=True) for name, issuer in issuers.items()}
    with file.open("w", encoding="utf-8") as opened:
        YAML(typ="safe", pure=True).dump({"issuers": document}, opened)


def configuration(declared: OAuth2Server, key: JsonObject, resource_server: Client) -> Configuration:
    """What the authorization server knows: the client with its key, and what an administrator has delegated to it.

    It is asked for one scope at one service, and as Google does it refuses everything if anything is too much.
    """
    client = declared.client.id
    return Configuration(
        clients=(
            Client(client, AuthMethod.NONE, (GrantType.JWT_BEARER,), default_resource=AUDIENCE),
            resource_server,
        ),
        resources=tuple(Resource(each, SCOPES, TokenFormat.OPAQUE, _TOKEN_SECONDS) for each in (AUDIENCE, OTHER)),
        issuers=(
            TrustedIssuer(
                client, (Use.JWT_BEARER,), jwks={"keys": [key]}, clients=(client,), longest_life=300, once=True
            ),
        ),
        accounts=(SUPPORT, *PERSONS),
        delegations=(Delegation(client, SUPPORT, (READONLY,), AUDIENCE),),
        refuse_excess_scope=True,
    )


def signing_key(declared: OAuth2Server) -> SigningKey:
    """That of its assertions. The sample has one."""
    assert declared.assertion is not None
    assert declared.assertion.key is not None
    return declared.assertion.key


def public_key(provisioned: Provisioned, declared: OAuth2Server) -> JsonObject:
    """The public part of the newest version of the key, as a JWK (RFC 7517): what Google is given once by hand."""
    from joserfc.jwk import RSAKey

    key = signing_key(declared)
    admin = VaultAdmin(provisioned.admin_config(), provisioned.info.root_token)
    try:
        found = admin.read(f"{key.mount}/keys/{key.name}")
    finally:
        admin.close()
    assert found is not None, "it was provisioned"
    version = int(found["latest_version"])
    public = RSAKey.import_key(found["keys"][str(version)]["public_key"]).as_dict(private=False)
    return {**public, "kid": key_id(key.name, version), "use": "sig", "alg": key.algorithm}
