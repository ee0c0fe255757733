"""Keeping a lease alive for a step that takes longer than its TTL, and knowing in time when that is impossible."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta

from orchestrator.clock import Clock
from orchestrator.ledger.events import LeaseRenewed
from orchestrator.vault.faults import VaultRefused, VaultUnavailable
from orchestrator.vault.session import VaultSession

_LAST_SECONDS = 5.0
"""At most so long before the end of a lease its step is told, so that it can still finish cleanly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """A lease that cannot be renewed, and why. `expires` and `last_call` are monotonic.

    At `last_call` a step that still needs it has to be told, so that it can finish cleanly.
    """

    reason: str
    expires: float
    last_call: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewal:
    """One lease: `ttl` was granted and `wanted` is asked for again, in seconds; `deadline` is monotonic."""

    lease_id: str
    vault_lease_id: str
    ttl: int
    wanted: int
    deadline: float

    async def once(
        self, vault: VaultSession, clock: Clock, record: Callable[[LeaseRenewed], Awaitable[None]], *, deadline: float
    ) -> tuple[int, float]:
        """Ask for `wanted` more seconds, until `deadline`; how many were granted, and when they end (monotonic).

        Raises VaultRefused, VaultUnavailable and LedgerError.
        """
        asked_at = clock.monotonic()
        granted = await vault.renew_lease(self.vault_lease_id, increment=self.wanted, deadline=deadline)
        until = clock.now() + timedelta(seconds=granted)
        await record(LeaseRenewed(lease_id=self.lease_id, ttl=granted, expires_at=until))
        return granted, asked_at + granted

    async def keep(
        self, vault: VaultSession, clock: Clock, record: Callable[[LeaseRenewed], Awaitable[None]]
    ) -> Ending | None:
        """Renew from two thirds of the life on, until the lease outlives the step: then there is no ending.

        An ending is known as soon as Vault refuses, does not answer in time, or grants less than at first.
        Raises LedgerError.
        """
        ttl, expires = self.ttl, clock.monotonic() + self.ttl
        reason = ""
        while expires < self.deadline and not reason:
            await asyncio.sleep(ttl * 2 / 3)
            try:
                granted, ends = await self.once(vault, clock, record, deadline=expires - ttl / 6)
            except (VaultRefused, VaultUnavailable) as error:
                reason = error.message
                break
            if granted + 1 < self.ttl or ends <= expires + 1:
                reason = "the maximum TTL of its role in Vault is reached"
            ttl, expires = granted, ends
        if not reason:
            return None
        return Ending(reason=reason, expires=expires, last_call=expires - min(_LAST_SECONDS, self.ttl / 6))
