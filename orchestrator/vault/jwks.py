"""The public keys of a transit key, as the JWKS (RFC 7517) under which services verify our tokens."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.errors import UsageError
from orchestrator.grants.models import TOKEN_KEY

ALGORITHMS = {"ecdsa-p256": "ES256", "ed25519": "EdDSA"}
"""The JWS `alg` by the type of a transit key."""


CLOCK_SKEW = 5
"""Seconds by which `nbf` lies in the past, for services whose clock is a little behind."""


def algorithm_of(answer: Mapping[str, Any]) -> str:
    """The JWS `alg` (RFC 7518, RFC 8037) of a transit key, from the answer to `transit/keys/NAME`."""
    kind = answer["data"]["type"]
    if kind not in ALGORITHMS:
        raise UsageError(
            f"a transit key of type {kind} cannot sign access tokens", hint="use ecdsa-p256 (ES256) or ed25519 (EdDSA)"
        )
    return ALGORITHMS[kind]


def issuer_of(token_issuer: str, key: str) -> str:
    """The `iss` of the tokens that a transit key signs: each key but the usual one has an issuer of its own.

    So a service that trusts one issuer accepts nothing that another audience's key has signed.
    """
    return token_issuer if key == TOKEN_KEY else f"{token_issuer}/{key}"


def key_id(name: str, version: int) -> str:
    """The `kid` of one version of a transit key: readable, and different after every rotation."""
    return f"{name}:v{version}"


def jwks_from_transit(name: str, answer: Mapping[str, Any]) -> dict[str, Any]:
    """The JWKS of every version that is still there, newest first, so that tokens outlive a rotation."""
    algorithm = algorithm_of(answer)
    return public_jwks(answer, algorithm, named=lambda version: key_id(name, version))


def public_jwks(answer: Mapping[str, Any], algorithm: str, *, named: Callable[[int], str]) -> dict[str, Any]:
    """The JWKS of the versions in an answer to `transit/keys/NAME`, newest first; `named` gives the `kid` of each."""
    kind = answer["data"]["type"]
    keys = []
    for version, entry in sorted(answer["data"]["keys"].items(), key=lambda item: -int(item[0])):
        public = _public(kind, entry["public_key"])
        keys.append({**public, "kid": named(int(version)), "use": "sig", "alg": algorithm})
    return {"keys": keys}


def _public(kind: str, encoded: str) -> dict[str, Any]:
    from joserfc.jwk import ECKey, OKPKey, RSAKey

    if kind == "ed25519":
        text = base64.urlsafe_b64encode(base64.b64decode(encoded)).rstrip(b"=").decode()
        return dict(OKPKey.import_key({"kty": "OKP", "crv": "Ed25519", "x": text}).as_dict(private=False))
    if kind.startswith("rsa-"):
        return dict(RSAKey.import_key(encoded).as_dict(private=False))
    return dict(ECKey.import_key(encoded).as_dict(private=False))
