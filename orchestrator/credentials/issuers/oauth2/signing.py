"""JWTs that Vault's transit engine signs: assertions about us, and about those on whose behalf we ask."""

from __future__ import annotations

import base64
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from orchestrator.issuers.oauth2 import SigningKey
from orchestrator.vault.fields import not_understood, section, text, whole_number
from orchestrator.vault.jwks import key_id

Ask = Callable[[str, str, Mapping[str, Any] | None], Awaitable[Mapping[str, Any]]]
"""Asks Vault, with the token of the step: method, path and payload; the whole answer."""

_ROTATIONS = 5
"""How often the key may turn out to be another one than that which has signed, before no sense is seen in it."""


class TransitSigner:
    """Knows which version of a key signs, so that it is asked for once and again after a rotation."""

    def __init__(self) -> None:
        self._versions: dict[str, int] = {}

    async def jwt(self, ask: Ask, key: SigningKey, claims: Mapping[str, Any], *, typ: str = "JWT") -> str:
        """The claims as a signed JWT (RFC 7515). Raises VaultRefused or VaultUnavailable."""
        for attempt in range(_ROTATIONS):
            version = await self._version(ask, key, refresh=attempt > 0)
            signed = f"{_base64url(_header(key, version, typ))}.{_base64url(claims)}"
            payload = {"input": base64.b64encode(signed.encode()).decode(), **key.parameters}
            data = section(await ask("post", key.resource, payload), "data", key.resource)
            _, by, signature = text(data, "hmac" if key.algorithm == "HS256" else "signature", key.resource).split(
                ":", 2
            )
            if version is None or by == f"v{version}":
                return f"{signed}.{signature.translate(_URL_SAFE).rstrip('=')}"
        raise not_understood(key.resource)

    async def _version(self, ask: Ask, key: SigningKey, *, refresh: bool) -> int | None:
        path = key.versions
        if path is None:
            return None
        if refresh or path not in self._versions:
            data = section(await ask("get", path, None), "data", path)
            self._versions[path] = whole_number(data, "latest_version", path, least=1)
        return self._versions[path]


_URL_SAFE = str.maketrans("+/", "-_")


def _header(key: SigningKey, version: int | None, typ: str) -> dict[str, str]:
    header = {"alg": key.algorithm, "typ": typ}
    if key.certificate_sha256 is not None:
        header["x5t#S256"] = key.certificate_sha256
    if key.key_id is not None:
        header["kid"] = key.key_id
    elif version is not None:
        header["kid"] = key_id(key.name, version)
    return header


def _base64url(value: Mapping[str, Any]) -> str:
    encoded = json.dumps(value, separators=(",", ":"), sort_keys=True)
    return base64.urlsafe_b64encode(encoded.encode()).rstrip(b"=").decode()
