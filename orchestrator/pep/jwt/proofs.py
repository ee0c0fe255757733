"""Proofs of possession (DPoP, RFC 9449): that whoever sends a request has the private key which they name."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes, urlsplit

from joserfc.errors import JoseError
from joserfc.jws import JWSRegistry

from orchestrator.jsontypes import JsonValue
from orchestrator.network.origins import origin
from orchestrator.pep.errors import ProofRefused, Reason, TokenRefused
from orchestrator.pep.jwt import strict
from orchestrator.pep.jwt.algorithms import SAME
from orchestrator.pep.jwt.keys import IssuerKey, PublicKey, read_key

ALGORITHMS = ("ES256", "EdDSA", "Ed25519", "ES384", "PS256", "RS256")
"""With which a proof may be signed; each is asymmetric."""

MOST_BYTES = 8192

_LONGEST_ID = 256
_UNRESERVED = re.compile(rb"[A-Za-z0-9._~-]")
_ESCAPED = re.compile(r"%[0-9A-Fa-f]{2}")
_OF_PRIVATE_KEYS = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
"""RFC 7518, 6: a key with one of these is not public, whatever its kind is."""


@dataclass(frozen=True, slots=True)
class Presented:
    """What a request presents: each header `DPoP` that came, its method, and its URL as the server is called by others.

    Neither the query nor the fragment of the URL counts.
    """

    proofs: Sequence[str | bytes] = field(repr=False)
    method: str
    url: str


@dataclass(frozen=True, slots=True)
class Proof:
    """A proof that holds. `thumbprint` is of its key (RFC 7638); by its `digest` it is known when it comes again."""

    thumbprint: str
    digest: str
    issued_at: float
    nonce: str | None


def proof_of(
    presented: Presented, *, now: float, age: float = 60, leeway: float = 5, token: str | None = None
) -> Proof:
    """The one proof of a request, everything of it verified (RFC 9449, 4.3) but its nonce and that it is a new one.

    Seconds: `now` since 1970, `age` since when it may have been made, `leeway` by which clocks differ. `token`: the
    access token that goes with it. Raises ProofRefused.
    """
    try:
        return _verified(presented, now, age, leeway, token)
    except ProofRefused:
        raise
    except TokenRefused as error:
        raise ProofRefused(error.reason, f"the proof is refused: {error.message}", claim=error.claim) from None


def _verified(presented: Presented, now: float, age: float, leeway: float, token: str | None) -> Proof:
    head, body, signed, signature = _taken_apart(presented.proofs)
    algorithm, key = _key_of(head)
    if not _holds(algorithm, key, signed, signature):
        raise _refused("its signature is wrong", Reason.SIGNATURE)
    proof_id, method, uri, issued_at = (body.get(name) for name in ("jti", "htm", "htu", "iat"))
    if not isinstance(proof_id, str) or not 0 < len(proof_id) <= _LONGEST_ID:
        raise _refused("`jti` is no short text", claim="jti")
    if not isinstance(method, str) or method != presented.method:
        raise _refused("`htm` is not the method of the request", claim="htm")
    if not isinstance(uri, str) or not _is_same(uri, presented.url):
        raise _refused("`htu` is not the URL of the request", claim="htu")
    if isinstance(issued_at, bool) or not isinstance(issued_at, int | float):
        raise _refused("`iat` is no number", claim="iat")
    if not now - age - leeway <= issued_at <= now + leeway:
        raise _refused("it was made too long ago, or will be", Reason.TOO_OLD, claim="iat")
    if token is not None and not _same(body.get("ath"), access_token_hash(token)):
        raise _refused("`ath` is not of this token", claim="ath")
    nonce = body.get("nonce")
    if "nonce" in body and not isinstance(nonce, str):
        raise _refused("`nonce` is no text", claim="nonce")
    thumbprint = key.thumbprint()
    once = "\n".join((thumbprint, normalised(presented.url), presented.method, proof_id))
    digest = hashlib.sha256(once.encode(errors="surrogatepass")).hexdigest()
    return Proof(thumbprint, digest, float(issued_at), nonce if isinstance(nonce, str) else None)


def access_token_hash(token: str) -> str:
    """`ath` (RFC 9449, 4.2)."""
    digest = hashlib.sha256(token.encode(errors="surrogatepass")).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def normalised(url: str) -> str:
    """A URL as it is compared (RFC 9449, 4.3; RFC 3986, 6.2.2 and 6.2.3), without query and fragment.

    Raises ValueError.
    """
    return origin(url) + _path(urlsplit(url).path or "/")


def _path(path: str) -> str:
    """Escaped only where needed, in capital letters, and without dots."""

    def in_one_way(found: re.Match[str]) -> str:
        byte = unquote_to_bytes(found[0])
        return byte.decode() if _UNRESERVED.fullmatch(byte) else found[0].upper()

    kept: list[str] = []
    parts = _ESCAPED.sub(in_one_way, path).split("/")[1:]
    for part in parts:
        if part == "..":
            del kept[-1:]
        elif part != ".":
            kept.append(part)
    if parts[-1] in (".", ".."):
        kept.append("")
    return "/" + "/".join(kept)


def _is_same(claimed: str, url: str) -> bool:
    try:
        return normalised(claimed) == normalised(url)
    except ValueError:
        return False


def _taken_apart(
    proofs: Sequence[str | bytes],
) -> tuple[Mapping[str, JsonValue], Mapping[str, JsonValue], bytes, bytes]:
    if len(proofs) != 1:
        raise _refused("there is not exactly one header DPoP")
    (sent,) = proofs
    text = sent.decode("latin-1") if isinstance(sent, bytes) else sent
    parts = text.split(".")
    if len(text) > MOST_BYTES or len(parts) != 3:
        raise _refused("it is no signed JWT of a usual size", Reason.NOT_COMPACT)
    head, body, signature = (strict.base64url(part) for part in parts)
    return strict.json_object(head), strict.json_object(body), f"{parts[0]}.{parts[1]}".encode(), signature


def _key_of(head: Mapping[str, JsonValue]) -> tuple[str, PublicKey]:
    """The algorithm, and the public key that the proof itself names."""
    algorithm, member = head.get("alg"), head.get("jwk")
    if head.get("typ") != "dpop+jwt":
        raise _refused("its `typ` is not dpop+jwt", Reason.TYPE)
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise _refused(f"its `alg` is not one of {', '.join(ALGORITHMS)}", Reason.ALGORITHM)
    if "crit" in head or "b64" in head:
        raise _refused("it wants an extension to be understood", Reason.CRITICAL)
    if not isinstance(member, Mapping) or _OF_PRIVATE_KEYS & set(member):
        raise _refused("its `jwk` is no public key", Reason.UNSUITABLE_KEY)
    found: IssuerKey = read_key(member)
    if found.key is None or not found.fits(algorithm):
        raise _refused("its `jwk` is no key that signs so", found.problem or Reason.UNSUITABLE_KEY)
    return algorithm, found.key


def _holds(algorithm: str, key: PublicKey, signed: bytes, signature: bytes) -> bool:
    name = SAME.get(algorithm, algorithm)
    by = JWSRegistry(algorithms=[name]).get_alg(name)
    try:
        by.check_key(key)
        return by.verify(signed, signature, key)
    except (JoseError, ValueError):
        return False


def _same(claimed: JsonValue, value: str) -> bool:
    return isinstance(claimed, str) and hmac.compare_digest(claimed.encode(errors="surrogatepass"), value.encode())


def _refused(why: str, reason: Reason = Reason.PROOF, *, claim: str | None = None) -> ProofRefused:
    return ProofRefused(reason, f"the proof is refused: {why}", claim=claim)
