"""What clients send to the token endpoint, and proofs of possession, made with joserfc and nothing of ours."""

from __future__ import annotations

import base64
import hashlib
import json
import time
import uuid
from typing import Any

import httpx
from joserfc import jws
from joserfc.jwk import ECKey, OKPKey, RSAKey

GRANT = "urn:ietf:params:oauth:grant-type:token-exchange"
JWT = "urn:ietf:params:oauth:token-type:jwt"
ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"

Key = ECKey | OKPKey | RSAKey


def wanted(subject_token: str, task: str, tool: str = "ticket", **more: Any) -> dict[str, Any]:
    """The parameters of an exchange. `arguments` go into the details; None takes a parameter away."""
    details: dict[str, Any] = {"type": "tool_call", "task": task, "tool": tool}
    if "arguments" in more:
        details["arguments"] = more.pop("arguments")
    found = {
        "grant_type": GRANT,
        "subject_token": subject_token,
        "subject_token_type": JWT,
        "authorization_details": json.dumps([details]),
        **more,
    }
    return {name: value for name, value in found.items() if value is not None}


def exchange(url: str, parameters: dict[str, Any], **headers: str | None) -> httpx.Response:
    """Send it, as a client without any other credentials."""
    named = {name.replace("_", "-"): value for name, value in headers.items() if value is not None}
    return httpx.post(f"{url}/oauth/token", data=parameters, headers=named, trust_env=False, timeout=60)


def oauth_error(answer: httpx.Response, error: str, status: int = 400) -> dict[str, Any]:
    """An error as RFC 6749, 5.2 has it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert (answer.headers["cache-control"], answer.headers["pragma"]) == ("no-store", "no-cache")
    found: dict[str, Any] = answer.json()
    assert found["error"] == error, found
    assert all(0x20 <= ord(char) <= 0x7E and char not in '"\\' for char in found["error_description"]), found
    assert (status == 401) == ("www-authenticate" in answer.headers)
    return found


def claims_of(token: str) -> dict[str, Any]:
    body = token.split(".")[1]
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    return found


def new_key(kind: str = "ES256") -> Key:
    if kind in ("EdDSA", "Ed25519"):
        return OKPKey.generate_key("Ed25519")
    if kind in ("RS256", "PS256"):
        return RSAKey.generate_key(2048)
    return ECKey.generate_key({"ES256": "P-256", "ES384": "P-384"}[kind])


def proof(
    key: Key,
    method: str,
    url: str,
    *,
    token: str | None = None,
    header: dict[str, Any] | None = None,
    algorithm: str = "ES256",
    signer: Key | None = None,
    **claims: Any,
) -> str:
    """A proof, with whatever a test wants of it: None takes a member away."""
    head = {"typ": "dpop+jwt", "alg": algorithm, "jwk": key.as_dict(private=False), **(header or {})}
    ath = None if token is None else encoded(hashlib.sha256(token.encode()).digest())
    whole = {"jti": str(uuid.uuid4()), "htm": method, "htu": url, "iat": int(time.time()), "ath": ath, **claims}
    return signed(head, whole, signer or key, algorithm)


def signed(head: dict[str, Any], body: dict[str, Any], key: Any, algorithm: str) -> str:
    """As the header says, by the algorithm that is named here."""
    head = {name: value for name, value in head.items() if value is not None}
    body = {name: value for name, value in body.items() if value is not None}
    text = f"{encoded(json.dumps(head).encode())}.{encoded(json.dumps(body).encode())}"
    name = {"EdDSA": "Ed25519"}.get(algorithm, algorithm)
    by = jws.JWSRegistry(algorithms=[name]).get_alg(name)
    return f"{text}.{encoded(by.sign(text.encode(), key))}"


def encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
