"""Signing a request to AWS (IAM User Guide, "AWS Signature Version 4 for API requests"). Pure.

The key that is needed is the one of the day: HMAC-SHA256 over the date, keyed by `AWS4` and the secret access key.
Whoever keeps the secret where it cannot be read (Vault's transit engine) can compute that key there, so that the
secret itself is never in this process.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

_ALGORITHM = "AWS4-HMAC-SHA256"


@dataclass(frozen=True, slots=True)
class SigningKey:
    """Who signs, and the key of one UTC day. `session_token` belongs to temporary credentials."""

    access_key_id: str
    day: str
    key: bytes = field(repr=False)
    session_token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Unsigned:
    """A request as it is sent. `path` is percent-encoded, `query` too, and sorted by name."""

    method: str
    host: str
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    path: str = "/"
    query: str = ""


def day_of(at: datetime) -> str:
    """The date that a day's key is made of, `20260302`."""
    return at.astimezone(UTC).strftime("%Y%m%d")


def day_key(secret_access_key: str, day: str) -> bytes:
    """The key of a day, where the secret is at hand."""
    return _hmac(f"AWS4{secret_access_key}".encode(), day)


def signed(request: Unsigned, key: SigningKey, *, region: str, service: str, at: datetime) -> dict[str, str]:
    """The headers with which the request is sent, all of them signed. Raises ValueError for a key of another day."""
    if key.day != day_of(at):
        raise ValueError("the signing key is of another day than the request")
    stamp = at.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    headers = {**request.headers, "Host": request.host, "X-Amz-Date": stamp}
    if key.session_token is not None:
        headers["X-Amz-Security-Token"] = key.session_token
    listed = {name.lower(): re.sub(r" +", " ", value.strip()) for name, value in headers.items()}
    names = ";".join(sorted(listed))
    canonical = "\n".join(
        (
            request.method,
            request.path,
            request.query,
            *(f"{name}:{listed[name]}" for name in sorted(listed)),
            "",
            names,
            hashlib.sha256(request.body).hexdigest(),
        )
    )
    scope = f"{key.day}/{region}/{service}/aws4_request"
    text = "\n".join((_ALGORITHM, stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()))
    derived = key.key
    for part in (region, service, "aws4_request"):
        derived = _hmac(derived, part)
    signature = _hmac(derived, text).hex()
    credential = f"{key.access_key_id}/{scope}"
    headers["Authorization"] = f"{_ALGORITHM} Credential={credential}, SignedHeaders={names}, Signature={signature}"
    return headers


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode(), hashlib.sha256).digest()
