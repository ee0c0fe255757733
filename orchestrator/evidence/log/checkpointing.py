"""Making checkpoints: what has ended enters the log, and what the log is now is signed and published.

Nothing of a run waits for this. Where it does not succeed, because Vault is away or the key is not installed, the next
checkpoint covers what this one would have.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from orchestrator.clock import Clock
from orchestrator.errors import EvidenceRejected, OrchestratorError, Unreachable
from orchestrator.evidence.log.checkpoint import Checkpoint
from orchestrator.evidence.log.note import NoteKey
from orchestrator.evidence.log.publishing import Publish, SetBack
from orchestrator.evidence.log.signer import Signer, names_of
from orchestrator.evidence.log.time_stamps import time_stamp
from orchestrator.ledger.log.reader import Published, StoredCheckpoint
from orchestrator.ledger.log.store import LogStore
from orchestrator.vault.faults import VaultUnavailable

log = logging.getLogger(__name__)

SIGN_SECONDS = 5.0
"""How long signing may take."""

CLOSING_SECONDS = 2.0
"""The same for a process that is about to end, such as because Vault is away."""

ALL_SECONDS = 30.0
"""How long all of it may take then: signing, and publishing it everywhere."""


@dataclass(slots=True)
class Checkpointing:
    """Makes the checkpoints of one ledger. Several processes may, at the same time."""

    store: LogStore
    signer: Signer
    clock: Clock
    destinations: Mapping[str, Publish] = field(default_factory=dict)
    publish_every: float = 60.0
    """Seconds between two checkpoints that a service publishes at one destination."""
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _last: Checkpoint | None = None
    """The newest that this process has signed or verified."""

    async def make(self, *, seconds: float = SIGN_SECONDS) -> StoredCheckpoint | None:
        """Enter what has ended, and sign the log as it is then; None where its newest checkpoint says that already.

        Raises EvidenceRejected where the log does not go on from what was signed before: then nothing is signed.
        Raises VaultRefused, VaultUnavailable and LedgerError.
        """
        async with self._turn:
            if not await asyncio.to_thread(self.store.is_behind):
                return None
            while await asyncio.to_thread(self.store.enter):
                pass
            origin = await asyncio.to_thread(self.store.origin)
            deadline = self.clock.monotonic() + seconds
            await self._check_what_was_signed(origin, deadline)
            size = await asyncio.to_thread(self.store.size)
            checkpoint = Checkpoint(origin, size, await asyncio.to_thread(self.store.root, size))
            note = await self.signer.sign(checkpoint, deadline=deadline)
            made = StoredCheckpoint(size, note, self.clock.now())
            await asyncio.to_thread(self.store.keep, made)
            self._last = checkpoint
            return made

    async def check(self, *, seconds: float = SIGN_SECONDS) -> None:
        """Raise EvidenceRejected where the log is not what it has signed itself."""
        async with self._turn:
            origin = await asyncio.to_thread(self.store.origin)
            await self._check_what_was_signed(origin, self.clock.monotonic() + seconds)

    async def _check_what_was_signed(self, origin: str, deadline: float) -> None:
        """A log signs nothing that contradicts what it has signed (c2sp.org/tlog-checkpoint)."""
        newest = await asyncio.to_thread(self.store.newest_checkpoint)
        stored = None if newest is None else await self._opened(newest.note, origin, deadline)
        size = await asyncio.to_thread(self.store.size)  # after that: others sign more meanwhile, and never less
        for signed in {each for each in (stored, self._last) if each is not None}:  # mostly one and the same
            if size < signed.size or await asyncio.to_thread(self.store.root, signed.size) != signed.root:
                raise EvidenceRejected(
                    f"the log of the ledger is not what was signed when it had {signed.size} entries",
                    hint="somebody has changed the ledger, or an older copy was restored: "
                    "`orchestrator history verify` tells what is wrong; nothing is signed until that is cleared up",
                )
        self._last = stored or self._last

    async def _opened(self, note: str, origin: str, deadline: float) -> Checkpoint:
        known = await asyncio.to_thread(self.store.keys)
        names = [origin] if note.startswith(f"{origin}\n") else await asyncio.to_thread(names_of, self.store)
        try:
            return Checkpoint.opened(note, note_keys(names, known))
        except EvidenceRejected:
            return Checkpoint.opened(note, await self.signer.keys(deadline=deadline))

    async def publish(self, *, at_once: bool = True) -> Sequence[OrchestratorError]:
        """Have each destination get the newest checkpoint, if it has an older one; what went wrong, of each.

        Without `at_once` only those that have waited for `publish_every`. Raises LedgerError.
        """
        newest = await asyncio.to_thread(self.store.newest_checkpoint) if self.destinations else None
        if newest is None:
            return ()
        have, now = await asyncio.to_thread(self.store.published), self.clock.now()
        problems: list[OrchestratorError] = []
        for name, publish in self.destinations.items():
            has = have.get(name)
            waited = at_once or has is None or (now - has.at).total_seconds() >= self.publish_every
            if (has is not None and has.size >= newest.size) or not waited:
                continue
            try:
                await publish(newest.note.split("\n", 1)[0], newest.note)
            except SetBack as error:
                latest = await asyncio.to_thread(self.store.newest_checkpoint)
                if latest is None or latest.size < error.entries:  # else another process has published it meanwhile
                    problems.append(error)
                continue
            except Unreachable as error:
                problems.append(error)
                continue
            await asyncio.to_thread(self.store.note_published, name, Published(newest.size, now))
        return problems

    async def have_stamped(self, authority: str) -> None:
        """Have a time-stamping authority say that the newest checkpoint is there, if none has.

        Raises Unreachable, UsageError and LedgerError.
        """
        newest = await asyncio.to_thread(self.store.newest_checkpoint)
        if newest is not None and not newest.stamp:
            stamp = await time_stamp(newest.note, authority)
            await asyncio.to_thread(self.store.keep, replace(newest, stamp=stamp))

    async def at_the_end(self) -> None:
        """As `make` and `publish`, for a process that ends whatever comes of it: what goes wrong is logged."""
        try:
            async with asyncio.timeout(ALL_SECONDS):
                await self.make(seconds=CLOSING_SECONDS)
                for problem in await self.publish():
                    log.warning("%s", problem)
        except VaultUnavailable as error:
            log.info("what has ended is signed by the next checkpoint: %s", error)
        except OrchestratorError as error:
            log.warning("%s%s", error, f"; {error.hint}" if error.hint else "")
        except TimeoutError:
            log.warning("what has ended is signed and published by the next checkpoint: it took too long")


def note_keys(names: Sequence[str], keys: Mapping[str, str]) -> Sequence[NoteKey]:
    """The keys that a ledger knows of its signer. Nobody else may trust them: whoever writes the ledger writes them."""
    newest_first = [base64.b64decode(keys[version]) for version in sorted(keys, key=int, reverse=True)]
    return [NoteKey(name, public) for name in names for public in newest_first]
