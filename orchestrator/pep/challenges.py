"""What a resource service answers to a request that may not pass (RFC 6750, 3), and where nobody can tell."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from orchestrator.errors import Refused
from orchestrator.pep.errors import ProofRefused, Reason, TokenRefused

_QUOTABLE = re.compile(r"[\x20-\x7e]+")
_SCOPES = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+(?: [\x21\x23-\x5b\x5d-\x7e]+)*")
"""RFC 6749, 3.3."""


class Code(StrEnum):
    """`error`. The first and the last are for the body only: such an answer has no error code in its challenge."""

    UNAUTHORIZED = "unauthorized"
    INVALID_REQUEST = "invalid_request"
    INVALID_TOKEN = "invalid_token"  # noqa: S105 - a code, no password
    INSUFFICIENT_SCOPE = "insufficient_scope"
    INVALID_PROOF = "invalid_dpop_proof"
    NONCE_WANTED = "use_dpop_nonce"
    UNAVAILABLE = "temporarily_unavailable"


class Scheme(StrEnum):
    """How a token is sent (RFC 6750, 2.1; RFC 9449, 7.1)."""

    BEARER = "Bearer"
    DPOP = "DPoP"


_STATUS = {
    Code.UNAUTHORIZED: 401,
    Code.INVALID_REQUEST: 400,
    Code.INVALID_TOKEN: 401,
    Code.INSUFFICIENT_SCOPE: 403,
    Code.INVALID_PROOF: 401,
    Code.NONCE_WANTED: 401,
    Code.UNAVAILABLE: 503,
}

_OF_CLAIM = {
    "iss": "the token is of another issuer",
    "aud": "the token is for another audience",
    "exp": "the token has expired",
    "nbf": "the token is not valid yet",
}
_OF_REASON = {
    Reason.MISSING_CLAIM: "the token lacks a required claim",
    Reason.TYPE: "this is not an access token",
    Reason.REVOKED: "the token is not active any more",
    Reason.INTROSPECTION: "the token is not active any more",
    Reason.CONFIRMATION: "the token is bound to a key, and is not sent as such tokens are",
}
_OF_CLAIMS = "the token's claims are not valid"
_OF_SIGNATURE = "the signature cannot be verified"


@dataclass(frozen=True, slots=True)
class Schemes:
    """Where tokens that are bound to a key are taken, too: `algorithms` of their proofs; the scheme that was `used`,
    of which an error is told; a `nonce` for the next proof."""

    algorithms: tuple[str, ...]
    used: Scheme = Scheme.BEARER
    nonce: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A response. `headers` are in the order in which they are sent; the names in small letters."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


class AccessRefused(Refused):
    """The request may not pass. `answer` is what the sender gets; `reason` says more, for a log."""

    def __init__(
        self,
        code: Code,
        description: str,
        *,
        realm: str,
        scope: str | None = None,
        retry_after: int = 1,
        schemes: Schemes | None = None,
    ) -> None:
        super().__init__(description or "no token was sent", by="service")
        self.code = code
        self.answer = answer(code, description, realm=realm, scope=scope, retry_after=retry_after, schemes=schemes)

    @property
    def status(self) -> int:
        """The status code."""
        return self.answer.status

    @property
    def reason(self) -> Reason | None:
        """Why the token was not believed, where that was it."""
        return self.__cause__.reason if isinstance(self.__cause__, TokenRefused) else None


def answer(
    code: Code,
    description: str,
    *,
    realm: str,
    scope: str | None = None,
    retry_after: int = 1,
    schemes: Schemes | None = None,
) -> Answer:
    """The response: a challenge, or after how many seconds to come again where nothing could be judged.

    Raises ValueError for what cannot be quoted.
    """
    headers = [("content-type", "application/json"), ("cache-control", "no-store")]
    if code is Code.UNAVAILABLE:
        headers.append(("retry-after", str(retry_after)))
    else:
        headers.append(("www-authenticate", challenges(code, description, realm, scope, schemes)))
    if schemes is not None and schemes.nonce is not None:
        headers.append(("dpop-nonce", schemes.nonce))
    body = json.dumps({"error": code.value, "error_description": description}).encode()
    return Answer(_STATUS[code], (*headers, ("content-length", str(len(body)))), body)


def challenges(code: Code, description: str, realm: str, scope: str | None, schemes: Schemes | None) -> str:
    """The value of `WWW-Authenticate`: what was wrong stands with the scheme that was used (RFC 9449, 7.2)."""
    told = challenge(code, description, realm=realm, scope=scope)
    if schemes is None:
        return told
    algorithms = f"algs={quoted(' '.join(schemes.algorithms))}"
    if schemes.used is Scheme.DPOP:
        return f"{Scheme.DPOP}{told.removeprefix(Scheme.BEARER)}, {algorithms}"
    return f"{told}, {Scheme.DPOP} realm={quoted(realm)}, {algorithms}"


def challenge(code: Code, description: str, *, realm: str, scope: str | None) -> str:
    """That of the scheme Bearer. Without a token it has neither `error` nor a description (RFC 6750, 3.1)."""
    parts: Mapping[str, str | None] = {"realm": realm, "scope": scope}
    if code is not Code.UNAUTHORIZED:
        parts = {"realm": realm, "error": code.value, "error_description": description or None, "scope": scope}
    return "Bearer " + ", ".join(f"{name}={quoted(value)}" for name, value in parts.items() if value is not None)


def quoted(text: str) -> str:
    """A quoted-string (RFC 9110, 5.6.4). Raises ValueError for what is not printable ASCII."""
    if not _QUOTABLE.fullmatch(text):
        raise ValueError("what stands in a challenge is printable ASCII")
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'


def checked_scope(scope: str) -> str:
    """The scope, if it is one (RFC 6749, 3.3). Raises ValueError."""
    if not _SCOPES.fullmatch(scope):
        raise ValueError("a scope is printable ASCII without quotes and backslashes, with single blanks in between")
    return scope


def told(refused: TokenRefused) -> str:
    """What the sender is told of a token that was refused: not more than they can do something about.

    Of their own proof, everything: nobody else has made it.
    """
    if isinstance(refused, ProofRefused):
        return refused.message.replace("`", "'")
    if refused.reason in _OF_REASON:
        return _OF_REASON[refused.reason]
    if refused.claim is not None:
        return _OF_CLAIM.get(refused.claim, _OF_CLAIMS)
    return _OF_SIGNATURE
