"""What is expected of the tokens of one issuer, and the claims that are believed then (RFC 7519, 4.1; RFC 8725, 3)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType

from orchestrator.jsontypes import JsonValue
from orchestrator.pep.errors import Reason, TokenRefused
from orchestrator.pep.jwt.algorithms import KEY_KINDS

_LARGEST_NUMBER = 2.0**53
_TEXTS = ("sub", "jti", "client_id")


class Audience(Enum):
    """Whether a token may be for others beside us: each of them could use it here."""

    AMONG = "among others"
    ONLY = "nobody else"


@dataclass(frozen=True, slots=True)
class Expected:
    """What a token must be. `audiences`: it is for at least one of them. `types`: the `typ` that are accepted, without
    `application/` and in small letters; None for any or none, where an issuer's tokens have none.

    Seconds: `leeway`, by which clocks may differ; `longest_life`, from `iat` to `exp`; `most_age`, since `iat`.
    `iss`, `aud` and `exp` are always required; `required` adds to them. Raises ValueError where it makes no sense.
    """

    issuer: str
    audiences: frozenset[str]
    algorithms: frozenset[str] = frozenset({"ES256", "EdDSA", "Ed25519"})
    types: frozenset[str] | None = None
    required: frozenset[str] = frozenset({"sub"})
    audience: Audience = Audience.AMONG
    leeway: float = 5
    longest_life: float | None = None
    most_age: float | None = None
    most_bytes: int = 16384

    def __post_init__(self) -> None:
        if isinstance(self.audiences, str) or isinstance(self.algorithms, str) or isinstance(self.types, str):
            raise ValueError("audiences, algorithms and types are sets of texts")
        if not self.issuer or not self.audiences or not all(self.audiences):
            raise ValueError("an issuer and an audience are needed: without them every token is for everybody")
        if unknown := set(self.algorithms) - set(KEY_KINDS):
            raise ValueError(f"not asymmetric, or not known: {', '.join(sorted(unknown))}")
        if not self.algorithms:
            raise ValueError("at least one algorithm is needed")
        if self.types is not None and any(
            each != each.lower() or each.startswith("application/") for each in self.types
        ):
            raise ValueError("types are written in small letters and without `application/`")
        for seconds in (self.leeway, self.longest_life, self.most_age):
            if seconds is not None and not (math.isfinite(seconds) and seconds >= 0):
                raise ValueError("seconds are not negative")


@dataclass(frozen=True, slots=True)
class Claims:
    """What a verified token says. `expires`, `issued_at`: seconds since 1970. `all`: every claim, as it came."""

    issuer: str
    audience: tuple[str, ...]
    subject: str | None
    expires: float
    issued_at: float | None
    token_id: str | None
    all: Mapping[str, JsonValue] = field(repr=False)


def check(claims: Mapping[str, JsonValue], expected: Expected, now: float) -> Claims:
    """The claims, if they are what is expected `now` (seconds since 1970). Raises TokenRefused."""
    for name in ("iss", "aud", "exp", *sorted(expected.required)):
        if claims.get(name) is None:
            raise TokenRefused(Reason.MISSING_CLAIM, "it lacks a required claim", claim=name)
    if claims["iss"] != expected.issuer:
        raise TokenRefused(Reason.ISSUER, "it is of another issuer", claim="iss")
    audience = _audience(claims["aud"])
    ours = expected.audiences & set(audience)
    if not ours or (expected.audience is Audience.ONLY and len(ours) != len(set(audience))):
        raise TokenRefused(Reason.AUDIENCE, "it is for another audience", claim="aud")
    subject, token_id, _ = (_identifier(claims, name) for name in _TEXTS)
    expires, issued_at = _times(claims, expected, now)
    return Claims(expected.issuer, audience, subject, expires, issued_at, token_id, MappingProxyType(dict(claims)))


def _times(claims: Mapping[str, JsonValue], expected: Expected, now: float) -> tuple[float, float | None]:
    """`exp` and `iat` (RFC 7519, 4.1.4 to 4.1.6)."""
    expires, not_before, issued_at = (_seconds(claims, name) for name in ("exp", "nbf", "iat"))
    if expires is None or now >= expires + expected.leeway:
        raise TokenRefused(Reason.EXPIRED, "it has expired", claim="exp")
    if not_before is not None and now < not_before - expected.leeway:
        raise TokenRefused(Reason.NOT_YET_VALID, "it is not valid yet", claim="nbf")
    if issued_at is None:
        if expected.longest_life is not None or expected.most_age is not None:
            raise TokenRefused(Reason.MISSING_CLAIM, "it lacks a required claim", claim="iat")
        return expires, None
    if issued_at > now + expected.leeway:
        raise TokenRefused(Reason.ISSUED_IN_FUTURE, "it says that it will be issued in the future", claim="iat")
    life = expires - issued_at
    if life <= 0 or (expected.longest_life is not None and life > expected.longest_life):
        raise TokenRefused(Reason.LIFETIME, "it is made for a longer time than is accepted, or for none", claim="exp")
    if expected.most_age is not None and now - issued_at > expected.most_age + expected.leeway:
        raise TokenRefused(Reason.TOO_OLD, "it was issued too long ago", claim="iat")
    return expires, issued_at


def _audience(value: JsonValue) -> tuple[str, ...]:
    """RFC 7519, 4.1.3: one text, or a list of them."""
    if isinstance(value, str) and value:
        return (value,)
    if isinstance(value, list) and value and all(isinstance(each, str) and each for each in value):
        return tuple(value)
    raise TokenRefused(Reason.CLAIM_TYPE, "a claim is not of its type", claim="aud")


def _identifier(claims: Mapping[str, JsonValue], name: str) -> str | None:
    """A text that names somebody or something; nothing that cannot be seen is part of a name."""
    value = claims.get(name)
    if name in claims and not (isinstance(value, str) and value and value.isprintable()):
        raise TokenRefused(Reason.CLAIM_TYPE, "a claim is not of its type", claim=name)
    return value if isinstance(value, str) else None


def _seconds(claims: Mapping[str, JsonValue], name: str) -> float | None:
    """A NumericDate (RFC 7519, 2): a JSON number, and neither a text nor a boolean."""
    value = claims.get(name)
    if name not in claims:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > _LARGEST_NUMBER:
        raise TokenRefused(Reason.CLAIM_TYPE, "a claim is not of its type", claim=name)
    return float(value)
