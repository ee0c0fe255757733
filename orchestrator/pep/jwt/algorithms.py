"""The signatures that can be expected at all: each asymmetric, so neither `none` nor an HMAC can be configured."""

from __future__ import annotations

from collections.abc import Mapping

KEY_KINDS: Mapping[str, tuple[str, str | None]] = {
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "ES512": ("EC", "P-521"),
    "EdDSA": ("OKP", "Ed25519"),
    "Ed25519": ("OKP", "Ed25519"),
    **{f"{family}{bits}": ("RSA", None) for family in ("RS", "PS") for bits in (256, 384, 512)},
}
"""The `kty` and `crv` of the key that an `alg` needs (RFC 7518, 3.1; RFC 8037, 3.1; RFC 9864, 2.2)."""

SAME = {"EdDSA": "Ed25519"}
"""Of the curves of EdDSA only Ed25519 is taken here, under its old name and under that of RFC 9864."""
