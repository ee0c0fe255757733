"""An authorization server beside the stack, clients of it whose keys are in Vault, and the truth of both."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from bench import Bench
from escaped import pieces_of
from joserfc.jwk import ECKey, OKPKey, RSAKey

from orchestrator.devstack.authorization.configuration import (
    AuthMethod,
    Client,
    Configuration,
    Delegation,
    DetailsType,
    GrantType,
    Resource,
    TokenFormat,
    TrustedIssuer,
    Use,
)
from orchestrator.devstack.authorization.server import AuthorizationServer
from orchestrator.issuers.declared import DeclaredIssuer, load_issuers
from orchestrator.runs.types import RunOutcome
from orchestrator.secret import Secret

FILES, MAIL = "https://files.example", "https://mail.example"
"""The first has opaque tokens, the second has JWTs."""

SUPPORT, ALICE = "support@shop.example", "alice@shop.example"
READ, SEND = "mail:read", "mail:send"
SECRET = "QZJX" * 10
"""Of the clients that have one; it is recognisable like a database password."""

KEYS = {
    "es": ("ecdsa-p256", "ES256"),
    "rs": ("rsa-2048", "RS256"),
    "ps": ("rsa-2048", "PS256"),
    "ed": ("ed25519", "EdDSA"),
}

WORKFLOW = """
version: 1
name: {name}
agent: reader
steps:
  ask:
    action: http.request
    grants:
      api: {{ kind: oauth2, {grant} }}
    with: {{ url: {url}, bearer: api }}
    outputs: [status]
    timeout: {timeout}
"""


def public_jwk(vault: Any, name: str) -> dict[str, Any]:
    """The public part of a transit key, as the authorization server is told it."""
    data = vault.read(f"transit/keys/{name}")["data"]
    text = data["keys"]["1"]["public_key"]
    if data["type"] == "ed25519":
        x = base64.urlsafe_b64encode(base64.b64decode(text)).rstrip(b"=").decode()
        key: Any = OKPKey.import_key({"kty": "OKP", "crv": "Ed25519", "x": x})
    else:
        key = (RSAKey if data["type"].startswith("rsa") else ECKey).import_key(text)
    return {**key.as_dict(private=False), "kid": f"{name}:v1", "use": "sig"}


@dataclass
class OAuth:
    """The server, what is declared of it, and runs with its tokens."""

    bench: Bench
    server: AuthorizationServer
    declared: dict[str, Any]
    before: frozenset[str] = frozenset()
    """The tokens that counted when the test began."""

    @property
    def file(self) -> Path:
        return self.bench.declarations / "declarations.yaml"

    @property
    def issuers(self) -> Mapping[str, DeclaredIssuer]:
        return load_issuers(self.file)

    def declare(self, name: str, **parts: Any) -> None:
        """Add an issuer, or change parts of one."""
        self.declared[name] = {**self.declared.get(name, {}), **parts}
        document = yaml.safe_load(self.file.read_text())
        self.file.write_text(yaml.safe_dump({**document, "issuers": self.declared}))

    def text(self, grant: str, *, name: str = "oauth_reader", url: str = "", timeout: str = "20s") -> str:
        url = url or f"{self.server.issuer}/.well-known/openid-configuration"
        return WORKFLOW.format(name=name, grant=grant, url=url, timeout=timeout)

    def run(self, grant: str, *, timeout: str = "20s", url: str = "", **how: Any) -> RunOutcome:
        """One run of one step with that grant, provisioned as declared."""
        return self.bench.run(self.text(grant, timeout=timeout, url=url), issuers=self.issuers, **how)

    def alive(self) -> list[dict[str, Any]]:
        """The opaque tokens of this test that count now, and its refresh tokens."""
        return [each for each in self.server.tokens() if each["sha256"] not in self.before]

    def asked(self) -> list[dict[str, Any]]:
        """The requests for tokens that the server has had."""
        return [each for each in self.server.requests() if each["endpoint"] == "/token"]

    def kept(self, path: str) -> dict[str, Any]:
        """A secret in Vault, as it is now."""
        found: dict[str, Any] = self.bench.vault.read(f"secret/data/{path}")["data"]["data"]
        return found


def clients(vault: Any) -> tuple[Client, ...]:
    """Each way of authenticating, and each flow."""
    both = {"scopes": (READ, "read", "write"), "default_resource": FILES}
    signed = tuple(
        Client(
            f"signed-{name}",
            AuthMethod.PRIVATE_KEY_JWT,
            jwks={"keys": [public_jwk(vault, f"oauth-{name}")]},
            details_types=("file",),
            **both,  # type: ignore[arg-type]
        )
        for name in KEYS
    )
    own = AuthMethod.PRIVATE_KEY_JWT, {"keys": [public_jwk(vault, "oauth-es")]}
    return (
        *signed,
        Client("basic", AuthMethod.SECRET_BASIC, secret=Secret(SECRET), details_types=("file",), **both),  # type: ignore[arg-type]
        Client("shared", AuthMethod.SECRET_JWT, secret=Secret(SECRET), **both),  # type: ignore[arg-type]
        Client("post", AuthMethod.SECRET_POST, secret=Secret(SECRET), **both),  # type: ignore[arg-type]
        Client("bearer", own[0], (GrantType.JWT_BEARER,), jwks=own[1], default_resource=MAIL),
        Client("exchanger", own[0], (GrantType.TOKEN_EXCHANGE,), jwks=own[1], default_resource=MAIL),
        Client("refresher", AuthMethod.SECRET_BASIC, (GrantType.REFRESH_TOKEN,), secret=Secret(SECRET)),
        Client("keeper", AuthMethod.SECRET_BASIC, (GrantType.REFRESH_TOKEN,), secret=Secret(SECRET), rotates=False),
        Client("bound", own[0], jwks=own[1], requires_dpop=True, **both),  # type: ignore[arg-type]
    )


def configuration(vault: Any, identity: str) -> Configuration:
    """`identity` is the issuer of Vault's own identity tokens."""
    keys = {"keys": [public_jwk(vault, "oauth-es")]}
    return Configuration(
        clients=clients(vault),
        resources=(
            Resource(FILES, ("read", "write", READ), TokenFormat.OPAQUE, ttl=60),
            Resource(MAIL, (READ, SEND), TokenFormat.JWT, ttl=60),
        ),
        issuers=(
            TrustedIssuer("bearer", (Use.JWT_BEARER,), jwks=keys, once=True),
            TrustedIssuer("exchanger", (Use.SUBJECT,), jwks=keys, once=True),
            TrustedIssuer(
                identity,
                (Use.SUBJECT,),
                jwks_uri=f"{identity}/.well-known/keys",
                audiences=("exchanger",),
                clients=None,
            ),
        ),
        accounts=(SUPPORT, ALICE),
        delegations=(
            Delegation("bearer", SUPPORT, (READ,), MAIL),
            Delegation("exchanger", SUPPORT, (READ,), MAIL),
            Delegation("exchanger", "agent", (READ,), MAIL),
        ),
        details_types=(DetailsType("file", ("read", "write")),),
    )


def issuers_of(issuer: str) -> dict[str, Any]:
    """What an admin declares of that server, by the name of the client."""
    common = {
        "kind": "oauth2",
        "issuer": issuer,
        "discovery": "oauth",
        "scopes": ["read", "write", READ, SEND],
        "resources": [FILES, MAIL],
        "detail_types": ["file"],
    }
    secret = {"path": "oauth/client", "key": "client_secret"}
    own = {"method": "private_key_jwt", "key": {"name": "oauth-es"}}
    declared: dict[str, Any] = {
        f"signed-{name}": {
            **common,
            "flow": "client_credentials",
            "client": {
                "id": f"signed-{name}",
                "method": "private_key_jwt",
                "key": {"name": f"oauth-{name}", "algorithm": algorithm},
            },
        }
        for name, (_, algorithm) in KEYS.items()
    }
    for name, method in (("basic", "client_secret_basic"), ("post", "client_secret_post")):
        client = {"id": name, "method": method, "secret": secret}
        declared[name] = {**common, "flow": "client_credentials", "client": client}
    for name, flow in (("bearer", "jwt_bearer"), ("exchanger", "token_exchange")):
        assertion = {"key": {"name": "oauth-es"}, "subjects": [SUPPORT, ALICE]}
        declared[name] = {**common, "flow": flow, "client": {"id": name, **own}, "assertion": assertion}
    for name in ("refresher", "keeper"):
        client = {"id": name, "method": "client_secret_basic", "secret": secret}
        kept = {"path": f"oauth/{name}", "key": "refresh_token"}
        declared[name] = {**common, "flow": "refresh_token", "client": client, "refresh_token": kept}
    shared = {"id": "shared", "method": "client_secret_jwt", "key": {"name": "oauth-hs", "algorithm": "HS256"}}
    declared["shared"] = {**common, "flow": "client_credentials", "client": shared}
    declared["bound"] = {**common, "flow": "client_credentials", "client": {"id": "bound", **own}}
    return declared


def prepare_keys(vault: Any) -> None:
    """The keys of the clients, as an admin would have them made."""
    for name, (kind, _) in KEYS.items():
        vault.write_data(f"transit/keys/oauth-{name}", data={"type": kind})


def opened(bench: Bench, server: AuthorizationServer) -> OAuth:
    """For one test: declarations of its own, and what the clients need in Vault."""
    folder = bench.directory / "declared"
    folder.mkdir()
    for each in bench.declarations.rglob("*"):
        target = folder / each.relative_to(bench.declarations)
        target.mkdir(exist_ok=True) if each.is_dir() else target.write_bytes(each.read_bytes())
    bench.vault.write_data("secret/data/oauth/client", data={"data": {"client_secret": SECRET}})
    before = frozenset(each["sha256"] for each in server.tokens())
    found = OAuth(replace(bench, declarations=folder), server, issuers_of(server.issuer), before)
    found.declare("basic")
    return found


_CANDIDATE = re.compile(rb"[A-Za-z0-9_.~+/=-]{30,}")


def escaped_tokens(server: AuthorizationServer, roots: Sequence[Path]) -> list[str]:
    """The files that hold a token that this server gave or took, known by its digest; not the server's own."""
    digests = set(re.findall(r"\b[0-9a-f]{64}\b", repr(server.requests()) + repr(server.tokens())))
    found = []
    for root in roots:
        for path in root.rglob("*"):
            if not path.is_file() or path.is_symlink() or path.is_relative_to(server.directory):
                continue
            with suppress(OSError), path.open("rb") as file:
                for piece in pieces_of(file.fileno()):
                    if any(hashlib.sha256(each).hexdigest() in digests for each in _CANDIDATE.findall(piece)):
                        found.append(str(path))
                        break
    return found
