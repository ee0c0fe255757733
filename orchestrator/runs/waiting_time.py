"""How long a lease has been waiting for its end to be confirmed, without trusting any wall clock of ours.

A request to Vault whose answer was lost may still be worked on, for as long as Vault allows one to take. The
time that counts begins when the ledger says `revoking`: from then on nobody asks for the lease any more. It is
measured in two ways, each of which is enough:

- this process has itself seen the lease so, for so long by its own monotonic clock;
- by Vault's own clock so long has passed since a failed try that the ledger holds, of whatever process.

Both count only while Vault answers: one that is silent may stand still, and go on where it stopped. So it is asked
where it has not answered lately: in a process without work it may have been asked for nothing else. When the
request was recorded, by the wall clock of the machine that made it, decides nothing: that clock may have been set
forward or back since.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import datetime

from orchestrator.clock import Clock
from orchestrator.ledger.events import LeaseRevocationFailed
from orchestrator.ledger.storage.times import text_to_time
from orchestrator.ledger.types import LeaseRecord, LedgerReader
from orchestrator.vault.session import VaultSession


@dataclass(frozen=True, slots=True)
class WaitingTime:
    """One per process; it remembers since when this process has seen each lease wait."""

    clock: Clock
    reader: LedgerReader
    vault: VaultSession
    _seen: dict[str, float] = field(default_factory=dict)

    async def waited(self, lease: LeaseRecord) -> float:
        """Seconds for which the lease has certainly been `revoking`; 0 when it is first seen."""
        at_vault = await self.vault.ask_time()
        if at_vault is None:
            self.forget(lease)
            return 0.0
        now = self.clock.monotonic()
        own = now - self._seen.setdefault(lease.lease_id, now)
        return max(own, await asyncio.to_thread(self._on_record, lease, at_vault))

    def forget(self, lease: LeaseRecord) -> None:
        """It is over, or its time begins anew."""
        self._seen.pop(lease.lease_id, None)

    def _on_record(self, lease: LeaseRecord, at_vault: datetime) -> float:
        for event in self.reader.events(lease.run_id, lease_id=lease.lease_id):
            tried = event.data.get("vault_time") if event.kind == LeaseRevocationFailed.kind else None
            if isinstance(tried, str):
                return (at_vault - text_to_time(tried)).total_seconds()
        return 0.0
