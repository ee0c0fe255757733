"""A configuration for the authorization server of tests, with the keys of those whom it knows."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import time
from typing import Any

from joserfc import jwt
from joserfc.jwk import ECKey, OctKey, RSAKey

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
from orchestrator.secret import Secret

MAIL = "https://mail.example/"
FILES = "https://files.example/"
SHORT = "https://short.example/"
READ, SEND = "mail.read", "mail.send"
SUPPORT, ALICE = "support@shop.example", "alice@shop.example"
PEOPLE = "https://people.example"
ASSERTIONS = "https://assertions.example"
ROBOT = "robot@project.iam.example"
GRANT = "urn:ietf:params:oauth:grant-type:"
TOKEN_TYPE = "urn:ietf:params:oauth:token-type:"

CLIENT_KEY = ECKey.generate_key("P-256", {"kid": "client"})
PEOPLE_KEY = ECKey.generate_key("P-256", {"kid": "people"})
ROBOT_KEY = RSAKey.generate_key(2048, {"kid": "robot"})
SECRETS = {name: secrets.token_hex(20) for name in ("basic", "post", "hmac", "refresher", "guard")}


def _public(key: ECKey | RSAKey) -> dict[str, Any]:
    return {"keys": [key.as_dict(private=False)]}


def _secret(name: str) -> Secret:
    return Secret(SECRETS[name])


EXCHANGES = (GrantType.CLIENT_CREDENTIALS, GrantType.TOKEN_EXCHANGE, GrantType.JWT_BEARER)

CONFIGURATION = Configuration(
    clients=(
        Client("basic", AuthMethod.SECRET_BASIC, secret=_secret("basic"), scopes=(READ, SEND)),
        Client("post", AuthMethod.SECRET_POST, secret=_secret("post"), default_resource=FILES),
        Client("hmac", AuthMethod.SECRET_JWT, secret=_secret("hmac"), details_types=("file",)),
        Client("key", AuthMethod.PRIVATE_KEY_JWT, EXCHANGES, jwks=_public(CLIENT_KEY), details_types=("file",)),
        Client("bound", AuthMethod.SECRET_BASIC, secret=_secret("basic"), requires_dpop=True),
        Client(ROBOT, AuthMethod.NONE, (GrantType.JWT_BEARER,), default_resource=MAIL),
        Client("refresher", AuthMethod.SECRET_BASIC, (GrantType.REFRESH_TOKEN,), secret=_secret("refresher")),
        Client("keeper", AuthMethod.SECRET_BASIC, (GrantType.REFRESH_TOKEN,), _secret("refresher"), rotates=False),
        Client("guard", AuthMethod.SECRET_BASIC, secret=_secret("guard"), introspects=(FILES,)),
    ),
    resources=(
        Resource(MAIL, (READ, SEND, "mail.settings")),
        Resource(FILES, ("read", "write"), TokenFormat.OPAQUE, ttl=120),
        Resource(SHORT, ("read",), TokenFormat.OPAQUE, ttl=1),
    ),
    issuers=(
        TrustedIssuer(
            PEOPLE,
            (Use.SUBJECT, Use.ACTOR, Use.JWT_BEARER),
            jwks=_public(PEOPLE_KEY),
            subjects={"person-1": SUPPORT, "person-2": ALICE, "person-3": "gone@shop.example"},
            clients=("key",),
        ),
        TrustedIssuer(ASSERTIONS, (Use.JWT_BEARER,), jwks=_public(PEOPLE_KEY)),
        TrustedIssuer(ROBOT, (Use.JWT_BEARER,), jwks=_public(ROBOT_KEY), clients=(ROBOT,), once=True),
    ),
    accounts=(SUPPORT, ALICE),
    delegations=(
        Delegation("key", SUPPORT, (READ, SEND), MAIL),
        Delegation("key", SUPPORT, ("read",), FILES),
        Delegation(ROBOT, SUPPORT, (READ,)),
    ),
    details_types=(
        DetailsType("file", ("read", "write"), ("report", "invoice"), {"locations": ("https://files.example/eu",)}),
    ),
)


def signed(key: ECKey | RSAKey | OctKey, claims: dict[str, Any], *, alg: str, **header: Any) -> str:
    return jwt.encode({"alg": alg, **header}, claims, key, algorithms=[alg])


def _said(claims: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    now = int(time.time())
    said = {"iat": now, "exp": now + 60, "jti": secrets.token_hex(8), **claims, **changes}
    return {name: value for name, value in said.items() if value is not None}


def person(audience: str, subject: str = "person-1", *, key: ECKey = PEOPLE_KEY, **changes: Any) -> str:
    """A token of the issuer of people."""
    claims = _said({"iss": PEOPLE, "sub": subject, "aud": audience}, changes)
    return signed(key, claims, alg="ES256", kid="people")


def robot(audience: str, subject: str = SUPPORT, **changes: Any) -> str:
    """An assertion as one of Google's service accounts: the scope is a claim."""
    claims = _said({"iss": ROBOT, "sub": subject, "aud": audience, "scope": READ}, changes)
    return signed(ROBOT_KEY, claims, alg="RS256", kid="robot")


def client_assertion(audience: str, **changes: Any) -> dict[str, str]:
    """How the client `key` authenticates (RFC 7523, 2.2)."""
    claims = _said({"iss": "key", "sub": "key", "aud": audience}, changes)
    return _authenticated(signed(CLIENT_KEY, claims, alg="ES256", kid="client"))


def hmac_assertion(audience: str, **changes: Any) -> dict[str, str]:
    """How the client `hmac` authenticates: with its secret, which it does not send."""
    claims = _said({"iss": "hmac", "sub": "hmac", "aud": audience}, changes)
    return _authenticated(signed(OctKey.import_key(SECRETS["hmac"]), claims, alg="HS256"))


def _authenticated(assertion: str) -> dict[str, str]:
    kind = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
    return {"client_assertion_type": kind, "client_assertion": assertion}


def proof(key: ECKey, url: str, **changes: Any) -> str:
    """A DPoP proof (RFC 9449, 4.2)."""
    claims = _said({"htm": "POST", "htu": url}, {"exp": None, **changes})
    return signed(key, claims, alg="ES256", typ="dpop+jwt", jwk=key.as_dict(private=False))


def claims_of(token: str) -> dict[str, Any]:
    """What a JWT says, not verified."""
    part = token.split(".")[1]
    said: dict[str, Any] = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return said


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
