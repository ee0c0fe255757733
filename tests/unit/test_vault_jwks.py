"""The JWKS of transit keys, from answers of the shape that Vault gives."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from joserfc.jwk import ECKey, OKPKey

from orchestrator.errors import UsageError
from orchestrator.vault.jwks import jwks_from_transit


def _answer(kind: str, *public_keys: str) -> dict[str, Any]:
    keys = {str(version): {"public_key": key} for version, key in enumerate(public_keys, 1)}
    return {"data": {"type": kind, "latest_version": len(keys), "keys": keys}}


def test_versions_come_newest_first_by_number_and_not_by_spelling() -> None:
    pems = [ECKey.generate_key("P-256").as_pem(private=False).decode() for _ in range(11)]
    jwks = jwks_from_transit("signer", _answer("ecdsa-p256", *pems))
    assert [key["kid"] for key in jwks["keys"]] == [f"signer:v{version}" for version in range(11, 0, -1)]
    assert len({key["x"] for key in jwks["keys"]}) == 11


def test_an_ed25519_key_is_published_as_it_is() -> None:
    public = OKPKey.generate_key("Ed25519").as_dict(private=False)
    text = str(public["x"])
    raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    (key,) = jwks_from_transit("signer", _answer("ed25519", base64.b64encode(raw).decode()))["keys"]
    assert (key["kty"], key["crv"], key["x"], key["alg"], key["use"]) == ("OKP", "Ed25519", text, "EdDSA", "sig")


@pytest.mark.parametrize("kind", ["aes256-gcm96", "rsa-2048", "ecdsa-p384"])
def test_a_key_that_cannot_sign_access_tokens_is_refused_with_those_that_can(kind: str) -> None:
    with pytest.raises(UsageError, match=f"{kind} cannot sign") as refused:
        jwks_from_transit("signer", _answer(kind))
    assert "ecdsa-p256" in str(refused.value)
