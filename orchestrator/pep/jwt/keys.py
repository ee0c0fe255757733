"""The public keys of an issuer (RFC 7517), and which of them a token is to be verified with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey, RSAKey

from orchestrator.jsontypes import JsonValue
from orchestrator.pep.errors import Reason, TokenRefused
from orchestrator.pep.jwt import strict
from orchestrator.pep.jwt.algorithms import KEY_KINDS, SAME

_MOST_KEYS = 100
_LEAST_RSA, _MOST_RSA = 2048, 8192
"""Bits. Below it is too weak (RFC 7518, 3.3); above it each signature takes long to verify."""
_PUBLIC = {"EC": ("kty", "crv", "x", "y"), "OKP": ("kty", "crv", "x"), "RSA": ("kty", "n", "e")}

PublicKey = ECKey | OKPKey | RSAKey


@dataclass(frozen=True, slots=True)
class IssuerKey:
    """One key of a JWKS. One that must not be used is kept with the reason, so that a token which names it is told."""

    kid: str | None
    kty: str
    crv: str | None
    alg: str | None
    key: PublicKey | None
    problem: Reason | None = None

    def fits(self, algorithm: str) -> bool:
        """Whether it can verify signatures of this algorithm, and is not meant for another one."""
        kty, crv = KEY_KINDS[algorithm]
        alike = self.alg is None or SAME.get(self.alg, self.alg) == SAME.get(algorithm, algorithm)
        return self.kty == kty and crv in (None, self.crv) and alike


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one issuer."""

    keys: Sequence[IssuerKey]

    def knows(self, kid: str | None) -> bool:
        """Whether it is worth looking here for the key of a token: one without `kid` names none."""
        return kid is None or any(key.kid == kid for key in self.keys)

    def select(self, kid: str | None, algorithm: str) -> PublicKey:
        """The only key that this can be. Raises TokenRefused where there is none, or more than one."""
        if kid is None:
            found = [key for key in self.keys if key.problem is None and key.fits(algorithm)]
        else:
            found = [key for key in self.keys if key.kid == kid]
        if not found:
            raise TokenRefused(Reason.UNKNOWN_KEY, "the issuer has no such key")
        if len(found) > 1:
            raise TokenRefused(Reason.AMBIGUOUS_KEY, "it does not say which one of several keys has signed it")
        chosen = found[0]
        if chosen.problem is not None or chosen.key is None:
            raise TokenRefused(chosen.problem or Reason.UNSUITABLE_KEY, "the issuer's key must not be used for this")
        if not chosen.fits(algorithm):
            raise TokenRefused(Reason.UNSUITABLE_KEY, "the issuer's key is not one of the token's algorithm")
        return chosen.key


def read_jwks(document: bytes | Mapping[str, Any]) -> Keys:
    """The keys of a JWK Set (RFC 7517, 5), as text or as what was read of it. Raises ValueError for what is none."""
    if isinstance(document, bytes):
        try:
            document = strict.json_object(document)
        except TokenRefused as error:
            raise ValueError(f"this is no JWK Set: {error.message}") from None
    members = document.get("keys")
    if not isinstance(members, list) or not all(isinstance(member, Mapping) for member in members):
        raise ValueError("this is no JWK Set: `keys` is not a list of objects")
    if len(members) > _MOST_KEYS:
        raise ValueError(f"this JWK Set has more than {_MOST_KEYS} keys")
    return Keys(tuple(read_key(member) for member in members))


def read_key(member: Mapping[str, JsonValue]) -> IssuerKey:
    """One key (RFC 7517, 4); with the reason where it must not be used."""
    kid, kty, crv, alg = (_text(member.get(name)) for name in ("kid", "kty", "crv", "alg"))
    problem = _misuse(member, kty or "")
    key = None
    if problem is None:
        try:
            key = _import(member, kty or "")
        except (JoseError, ValueError, KeyError, TypeError):
            problem = Reason.UNSUITABLE_KEY
    return IssuerKey(kid, kty or "", crv, alg, key, problem)


def _misuse(member: Mapping[str, JsonValue], kty: str) -> Reason | None:
    """Why a key is not to be used whatever it is: for another purpose, not public, of no kind that is known, weak."""
    operations = member.get("key_ops", ["verify"])
    meant = member.get("use", "sig") == "sig" and isinstance(operations, list) and "verify" in operations
    odd = any(name in member and not isinstance(member[name], str) for name in ("kid", "alg", "crv"))
    if not meant or odd or "d" in member or kty not in _PUBLIC:
        return Reason.UNSUITABLE_KEY
    if kty != "RSA":
        return None
    try:
        bits = int.from_bytes(strict.base64url(_text(member.get("n")) or "")).bit_length()
    except TokenRefused:
        return Reason.UNSUITABLE_KEY
    return None if _LEAST_RSA <= bits <= _MOST_RSA else Reason.WEAK_KEY


def _import(member: Mapping[str, JsonValue], kty: str) -> PublicKey:
    public: Any = {name: member[name] for name in _PUBLIC[kty]}
    if kty == "EC":
        return ECKey.import_key(public)
    if kty == "OKP":
        return OKPKey.import_key(public)
    return RSAKey.import_key(public)


def _text(value: JsonValue) -> str | None:
    return value if isinstance(value, str) else None
