"""Why a token is refused, and what could not be asked. The words never quote the token."""

from __future__ import annotations

from enum import StrEnum

from orchestrator.errors import Refused, Unreachable


class Reason(StrEnum):
    """Stable codes, for logs, metrics and tests; what the sender is told is coarser (`challenges`)."""

    TOO_LARGE = "too_large"
    NOT_COMPACT = "not_compact"
    ENCRYPTED = "encrypted"
    NOT_BASE64URL = "not_base64url"
    NOT_JSON = "not_json"
    NOT_AN_OBJECT = "not_an_object"
    DUPLICATE_MEMBER = "duplicate_member"
    TOO_DEEP = "too_deep"
    ALGORITHM = "algorithm"
    CRITICAL = "critical"
    KEY_IN_HEADER = "key_in_header"
    KEY_ID = "key_id"
    UNKNOWN_KEY = "unknown_key"
    AMBIGUOUS_KEY = "ambiguous_key"
    UNSUITABLE_KEY = "unsuitable_key"
    WEAK_KEY = "weak_key"
    SIGNATURE = "signature"
    TYPE = "type"
    ISSUER = "issuer"
    AUDIENCE = "audience"
    EXPIRED = "expired"
    NOT_YET_VALID = "not_yet_valid"
    ISSUED_IN_FUTURE = "issued_in_future"
    TOO_OLD = "too_old"
    LIFETIME = "lifetime"
    MISSING_CLAIM = "missing_claim"
    CLAIM_TYPE = "claim_type"
    REVOKED = "revoked"
    INTROSPECTION = "introspection"
    CONFIRMATION = "confirmation"
    PROOF = "proof"
    NONCE = "nonce"
    REPLAYED = "replayed"


class TokenRefused(Refused):
    """A token that is not believed. `claim` is the name of the claim that is wrong, where it is one."""

    def __init__(self, reason: Reason, message: str, *, claim: str | None = None) -> None:
        super().__init__(message, by="service")
        self.reason = reason
        self.claim = claim


class ProofRefused(TokenRefused):
    """A proof of possession that is not believed (RFC 9449, 4.3)."""


class IssuerUnreachable(Unreachable):
    """The issuer's keys or its introspection cannot be had: no token can be judged now, perhaps in `retry_after` s.

    `status`: what it answered instead of 200, where it answered.
    """

    def __init__(self, message: str, *, retry_after: int = 1, status: int | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.status = status
