"""Signing checkpoints with an Ed25519 key that never leaves Vault's transit engine."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.evidence.log.checkpoint import Checkpoint
from orchestrator.evidence.log.note import NoteKey, signed_note
from orchestrator.ledger.log.store import LogStore
from orchestrator.vault.faults import Outcome, VaultRefused, VaultUnavailable
from orchestrator.vault.fields import section, text
from orchestrator.vault.session import VaultSession

KEY = "orchestrator-history"
"""The transit key that signs."""


@dataclass(frozen=True, slots=True)
class Signer:
    """Signs for the log of one ledger. Which public keys it has is remembered there, so that Vault is asked once."""

    vault: VaultSession
    store: LogStore

    async def sign(self, checkpoint: Checkpoint, *, deadline: float) -> str:
        """The signed note (Vault API, `POST /transit/sign/:name`). Raises VaultRefused and VaultUnavailable.

        Whatever Vault answers, the note is one that its public key verifies.
        """
        path, said = f"transit/sign/{KEY}", checkpoint.text()
        try:
            body = await self.vault.runtime_request(
                "post", path, deadline=deadline, payload={"input": base64.b64encode(said.encode()).decode()}
            )
        except VaultRefused as error:
            raise _not_provisioned(error) from error
        answer = text(section(body, "data", path), "signature", path)
        version, signature = _parted(answer, path)
        known = await asyncio.to_thread(self.store.keys)
        for keys in (known, None):
            public = _public((keys if keys is not None else await self._asked(deadline)).get(version, ""))
            key = None if public is None else NoteKey(checkpoint.origin, public)
            if key is not None and key.verifies(signature, said):
                return signed_note(said, key, signature)
        raise _no_signature("the signature of the history is not one of the key that Vault shows", path)

    async def keys(self, *, deadline: float) -> Sequence[NoteKey]:
        """The public keys by which checkpoints of this log are verified, the newest first.

        After them those under the names that it had before. Raises VaultRefused and VaultUnavailable.
        """
        names, found = await asyncio.to_thread(names_of, self.store), await self._asked(deadline)
        by_version = sorted(found.items(), key=lambda item: int(item[0]), reverse=True)
        keys = [public for _, key in by_version if (public := _public(key)) is not None]
        return [NoteKey(name, public) for name in names for public in keys]

    async def _asked(self, deadline: float) -> Mapping[str, str]:
        """The public keys by version as Vault has them (`GET /transit/keys/:name`)."""
        path = f"transit/keys/{KEY}"
        try:
            body = await self.vault.runtime_request("get", path, deadline=deadline)
        except VaultRefused as error:
            raise _not_provisioned(error) from error
        versions = section(section(body, "data", path), "keys", path)
        keys = {name: text(section(versions, name, path), "public_key", path) for name in versions}
        await asyncio.to_thread(self.store.know, keys)
        return keys


def names_of(store: LogStore) -> Sequence[str]:
    """What the log is called, and after that what it was called before, without repetition."""
    return list(dict.fromkeys([store.origin(), *(each.before for each in reversed(store.restarts()))]))


def _parted(answer: str, path: str) -> tuple[str, bytes]:
    """The version of the key in `vault:v1:...`, and the signature."""
    prefix, _, rest = answer.partition(":v")
    version, _, encoded = rest.partition(":")
    try:
        signature = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        signature = b""
    if not prefix or not version.isdigit() or len(signature) != 64:
        raise _no_signature("Vault's answer is no Ed25519 signature", path)
    return version, signature


def _public(encoded: str) -> bytes | None:
    try:
        public = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return None
    return public if len(public) == 32 else None


def _no_signature(problem: str, path: str) -> VaultUnavailable:
    return VaultUnavailable(problem, outcome=Outcome.NOT_DONE, path=path, hint=f"is the key `{KEY}` of type ed25519?")


def _not_provisioned(error: VaultRefused) -> VaultRefused:
    return VaultRefused(
        f"the history cannot be signed: {error.message}",
        status=error.status,
        path=error.path,
        hint=f"the transit key `{KEY}` and the runtime's rights to it are installed by `orchestrator provision apply`",
    )
