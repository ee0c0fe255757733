"""Verifying one signed JWT of a pinned issuer (RFC 7515, RFC 7519, with the advice of RFC 8725).

The token is taken apart here, strictly; the signature itself is joserfc's work. What is verified is the text that was
taken apart, and nothing is parsed a second time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from joserfc.errors import JoseError
from joserfc.jws import JWSRegistry

from orchestrator.jsontypes import JsonValue
from orchestrator.pep.errors import Reason, TokenRefused
from orchestrator.pep.jwt import strict
from orchestrator.pep.jwt.algorithms import SAME
from orchestrator.pep.jwt.claims import Claims, Expected, check
from orchestrator.pep.jwt.keys import Keys, PublicKey

_PARTS, _PARTS_OF_JWE = 3, 5
_LONGEST_KEY_ID = 256

_KEYS_BROUGHT_ALONG = ("jwk", "jku", "x5u", "x5c")
"""A token does not say what it is to be verified with (RFC 8725, 3.10): these are refused, not followed."""


@dataclass(frozen=True, slots=True)
class Unverified:
    """A token that is well formed. Nothing of it is to be believed before `verified` has returned."""

    algorithm: str
    kid: str | None
    claims: Mapping[str, JsonValue] = field(repr=False)
    signed: bytes = field(repr=False)
    signature: bytes = field(repr=False)

    def verified(self, keys: Keys, expected: Expected, now: float) -> Claims:
        """Its claims, once the signature and they are right. `now` in seconds since 1970. Raises TokenRefused."""
        key = keys.select(self.kid, self.algorithm)
        if not _signature_holds(self, key):
            raise TokenRefused(Reason.SIGNATURE, "the signature is wrong")
        return check(self.claims, expected, now)


def verify(token: str, keys: Keys, expected: Expected, now: float) -> Claims:
    """The claims of a compact JWS (RFC 7515, 7.1). `now` in seconds since 1970. Raises TokenRefused, nothing else."""
    return take_apart(token, expected).verified(keys, expected, now)


def take_apart(token: str, expected: Expected) -> Unverified:
    """What a token says of itself, for looking for its key. Raises TokenRefused where it cannot be one of these."""
    parts = _parts(token, expected.most_bytes)
    header, payload, signature = (strict.base64url(part) for part in parts)
    algorithm, kid = _read_header(strict.json_object(header), expected)
    claims = strict.json_object(payload)
    return Unverified(algorithm, kid, claims, f"{parts[0]}.{parts[1]}".encode(), signature)


def issuer_named(token: str, most_bytes: int = 16384) -> str | None:
    """The `iss` that a token claims, for choosing which of several issuers' expectations it is to be held to.

    Not to be believed before it was verified by those. Raises TokenRefused for what is no token.
    """
    issuer = claimed(token, most_bytes).get("iss")
    return issuer if isinstance(issuer, str) else None


def claimed(token: str, most_bytes: int = 16384) -> Mapping[str, JsonValue]:
    """What a token claims. Not to be believed before it was verified. Raises TokenRefused for what is no token."""
    return strict.json_object(strict.base64url(_parts(token, most_bytes)[1]))


def _parts(token: str, most_bytes: int) -> list[str]:
    if len(token) > most_bytes:
        raise TokenRefused(Reason.TOO_LARGE, f"it is longer than {most_bytes} bytes")
    parts = token.split(".")
    if len(parts) == _PARTS_OF_JWE:
        raise TokenRefused(Reason.ENCRYPTED, "it is encrypted (JWE), not signed")
    if len(parts) != _PARTS:
        raise TokenRefused(Reason.NOT_COMPACT, "it does not have the three parts of a signed token")
    return parts


def _read_header(header: Mapping[str, JsonValue], expected: Expected) -> tuple[str, str | None]:
    """`alg` and `kid`."""
    algorithm = header.get("alg")
    if not isinstance(algorithm, str) or algorithm not in expected.algorithms:
        raise TokenRefused(Reason.ALGORITHM, "it is not signed with one of the algorithms of this issuer")
    if "crit" in header or "b64" in header:
        raise TokenRefused(Reason.CRITICAL, "it wants an extension to be understood (RFC 7515, 4.1.11; RFC 7797)")
    if any(name in header for name in _KEYS_BROUGHT_ALONG):
        raise TokenRefused(Reason.KEY_IN_HEADER, "it brings along the key that it is to be verified with")
    kid = header.get("kid")
    if "kid" in header and not (isinstance(kid, str) and 0 < len(kid) <= _LONGEST_KEY_ID):
        raise TokenRefused(Reason.KEY_ID, "its `kid` is not a short text")
    if expected.types is not None and _media_type(header.get("typ")) not in expected.types:
        raise TokenRefused(Reason.TYPE, "it is a token of another kind (`typ`)")
    return algorithm, kid if isinstance(kid, str) else None


def _media_type(value: JsonValue) -> str | None:
    """A `typ` without `application/` and in small letters, as it is compared (RFC 7515, 4.1.9)."""
    return value.lower().removeprefix("application/") if isinstance(value, str) else None


def _signature_holds(token: Unverified, key: PublicKey) -> bool:
    name = SAME.get(token.algorithm, token.algorithm)
    algorithm = JWSRegistry(algorithms=[name]).get_alg(name)
    try:
        algorithm.check_key(key)
        return algorithm.verify(token.signed, token.signature, key)
    except (JoseError, ValueError):
        return False
