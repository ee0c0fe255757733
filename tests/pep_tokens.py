"""Tokens of every kind for the tests of enforcement: signed with real keys, and as wrong as a test wants them."""

from __future__ import annotations

import base64
import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from typing import Any

from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

from orchestrator.pep.access import access_tokens
from orchestrator.pep.jwt.claims import Claims, Expected
from orchestrator.pep.jwt.keys import read_jwks
from orchestrator.pep.jwt.verification import verify

ISSUER = "https://issuer.example"
AUDIENCE = "https://crm.example"
NOW = 1_800_000_000

Signer = ECKey | OKPKey | RSAKey | OctKey


class FixedClock:
    """Stands still until a test moves it."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> datetime:
        return datetime.fromtimestamp(NOW + self.seconds, UTC)

    def monotonic(self) -> float:
        return self.seconds


@cache
def signer(name: str) -> ECKey | OKPKey | RSAKey:
    """A private key, made once: `p256`, `p256-other`, `p384`, `ed25519`, `rsa`, `rsa-weak`."""
    kind = name.partition("-")[0]
    if kind == "rsa":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return RSAKey.generate_key(1024 if name == "rsa-weak" else 2048)
    if kind == "ed25519":
        return OKPKey.generate_key("Ed25519")
    return ECKey.generate_key({"p256": "P-256", "p384": "P-384"}[kind])


def jwk(name: str, **changes: Any) -> dict[str, Any]:
    """The public key as a member of a JWKS, with its name as `kid`; a change to None takes a member away."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        public = dict(signer(name).as_dict(private=False))
    members = {**public, "kid": name, "use": "sig", **changes}
    return {member: value for member, value in members.items() if value is not None}


def jwks(*members: dict[str, Any]) -> dict[str, Any]:
    return {"keys": list(members)}


def encode(part: dict[str, Any] | bytes) -> str:
    raw = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def sign(header: dict[str, Any] | bytes, payload: dict[str, Any] | bytes, key: Signer, algorithm: str) -> str:
    """Whatever the header says, signed by this algorithm."""
    signed = f"{encode(header)}.{encode(payload)}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        signature = JWSRegistry(algorithms=[algorithm]).get_alg(algorithm).sign(signed.encode(), key)
    return f"{signed}.{encode(signature)}"


def claims(**changes: Any) -> dict[str, Any]:
    """Those of a good access token; a change to None takes a claim away."""
    good = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "feedback-assistant",
        "client_id": "customer_feedback",
        "scope": "crm:read crm:write",
        "iat": NOW,
        "nbf": NOW - 5,
        "exp": NOW + 60,
        "jti": "lease-1",
    }
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def header(**changes: Any) -> dict[str, Any]:
    good = {"alg": "ES256", "typ": "at+jwt", "kid": "p256"}
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def token(key: str = "p256", algorithm: str = "ES256", **changes: Any) -> str:
    return sign(header(), claims(**changes), signer(key), algorithm)


def attempt(
    *,
    head: dict[str, Any] | bytes | None = None,
    body: dict[str, Any] | bytes | None = None,
    key: str | Signer = "p256",
    algorithm: str = "ES256",
    keys: Callable[[], dict[str, Any]] = lambda: jwks(jwk("p256"), jwk("rsa"), jwk("ed25519")),
    expected: dict[str, Any] | None = None,
    bent: Callable[[str], str] = lambda text: text,
    now: float = NOW,
) -> Claims:
    """Sign, bend and verify one token; raises TokenRefused."""
    by = signer(key) if isinstance(key, str) else key
    text = bent(sign(header() if head is None else head, claims() if body is None else body, by, algorithm))
    return verify(text, read_jwks(keys()), replace(wanted(), **(expected or {})), now)


def wanted() -> Expected:
    return access_tokens(ISSUER, AUDIENCE, algorithms=frozenset({"ES256", "RS256", "PS256", "EdDSA", "Ed25519"}))
