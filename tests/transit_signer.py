"""Signs what a test wants inside a real transit engine, right and wrong, for the sample services."""

from __future__ import annotations

import base64
import json
import time
from dataclasses import dataclass
from typing import Any

from orchestrator.devstack.admin import VaultAdmin
from orchestrator.devstack.stack import AUDIENCE, TOKEN_KEY
from orchestrator.vault.jwks import algorithm_of, key_id


def encode(part: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()


def claims_of(issuer: str, **changes: Any) -> dict[str, Any]:
    """Of a token as the orchestrator's token issuer makes them; None takes a claim away."""
    now = int(time.time())
    claims = {
        "iss": issuer,
        "aud": AUDIENCE,
        "sub": "feedback-assistant",
        "client_id": "customer_feedback",
        "scope": "translate",
        "iat": now,
        "nbf": now - 5,
        "exp": now + 60,
        "jti": "lease-1",
    }
    return {name: value for name, value in (claims | changes).items() if value is not None}


def jws_of(signed: str) -> dict[str, str]:
    """What transit is asked to sign header and claims."""
    return {
        "input": base64.b64encode(signed.encode()).decode(),
        "hash_algorithm": "sha2-256",
        "marshaling_algorithm": "jws",
    }


@dataclass
class Signer:
    """Signs whatever a test wants with a transit key, as the orchestrator's token issuer does."""

    vault: VaultAdmin
    issuer: str

    def claims(self, **changes: Any) -> dict[str, Any]:
        return claims_of(self.issuer, **changes)

    def token(self, *, key: str = TOKEN_KEY, header: dict[str, Any] | None = None, **changes: Any) -> str:
        key_data = self.vault.request("GET", f"transit/keys/{key}")
        version = key_data["data"]["latest_version"]
        whole = {"alg": algorithm_of(key_data), "typ": "at+jwt", "kid": key_id(key, version)} | (header or {})
        kept = {name: value for name, value in whole.items() if value is not None}
        signed = f"{encode(kept)}.{encode(self.claims(**changes))}"
        answer = self.vault.request("POST", f"transit/sign/{key}", jws_of(signed))
        return signed + "." + str(answer["data"]["signature"]).split(":", 2)[2]
