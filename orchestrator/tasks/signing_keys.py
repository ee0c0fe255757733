"""The public keys of those keys in Vault that sign our tokens: to verify these, and to publish them."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.errors import OrchestratorError
from orchestrator.grants.models import TOKEN_KEY
from orchestrator.pep.errors import IssuerUnreachable
from orchestrator.pep.jwt.keys import Keys, read_jwks
from orchestrator.runs.types import Services
from orchestrator.vault.jwks import jwks_from_transit

KEYS_SECONDS = 60.0
"""How long public keys are taken as they were; one that is not known is looked for sooner."""

AGAIN_SECONDS = 2.0
"""Between two looks for a key that is not known."""

VAULT_SECONDS = 10.0

_OF_A_KEY = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(slots=True)
class TransitKey:
    """The public keys of one key in Vault, that of an issuer of ours: what another key has signed is not its."""

    services: Services
    name: str
    _since: float = -math.inf
    _keys: Keys = field(default_factory=lambda: Keys(()))
    _document: Mapping[str, Any] = field(default_factory=dict)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _failed: float = -math.inf

    async def keys_for(self, kid: str | None) -> Keys:
        """Raises IssuerUnreachable."""
        now = self.services.clock.monotonic()
        if now - self._since >= (KEYS_SECONDS if self._keys.knows(kid) else AGAIN_SECONDS):
            await self._ask(now)
        return self._keys

    async def document(self) -> Mapping[str, Any]:
        """As a JWK Set (RFC 7517, 5). Vault is asked now and then, however often strangers ask for it.

        Raises IssuerUnreachable.
        """
        async with self._turn:
            now = self.services.clock.monotonic()
            if now - self._failed < AGAIN_SECONDS:
                raise IssuerUnreachable("the keys could not be had from Vault just now")
            if now - self._since >= AGAIN_SECONDS:
                try:
                    await self._ask(now)
                except IssuerUnreachable:
                    self._failed = self.services.clock.monotonic()
                    raise
            return self._document

    async def _ask(self, now: float) -> None:
        try:
            answer = await self.services.broker.vault.runtime_request(
                "get", f"transit/keys/{self.name}", deadline=now + VAULT_SECONDS
            )
            document = jwks_from_transit(self.name, answer)
            self._keys, self._document, self._since = read_jwks(document), document, now
        except (OrchestratorError, ValueError, KeyError, TypeError) as error:
            raise IssuerUnreachable("the keys cannot be had from Vault now") from error


@dataclass(slots=True)
class SigningKeys:
    """The keys of a process, by the issuer whose tokens they sign."""

    services: Services
    _known: dict[str, TransitKey] = field(default_factory=dict)

    def of_issuer(self, named: str | None) -> TransitKey | None:
        """The one key of ours that signs tokens with this `iss`: each but the usual one has an issuer of its own."""
        issuer = self.services.broker.token_issuer
        name = None if issuer is None or named is None else _key_of(named, issuer)
        return None if name is None else self.named(name)

    def named(self, name: str) -> TransitKey:
        """A key by its name in Vault, whether there is one or not."""
        return self._known.get(name) or TransitKey(self.services, name)

    def keep(self, key: TransitKey) -> None:
        """There is such a key: what Vault says of it is kept for a while."""
        self._known[key.name] = key


def _key_of(named: str, issuer: str) -> str | None:
    if named == issuer:
        return TOKEN_KEY
    name = named.removeprefix(f"{issuer}/")
    return name if name not in (named, TOKEN_KEY) and _OF_A_KEY.fullmatch(name) else None
