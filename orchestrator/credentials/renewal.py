"""Keeping a lease alive for a step that takes longer than its TTL, and saying in time when that is impossible."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta

from orchestrator.clock import Clock
from orchestrator.errors import StepFailed
from orchestrator.ledger.events import LeaseRenewed
from orchestrator.vault.faults import VaultRefused, VaultUnavailable
from orchestrator.vault.session import VaultSession

_LAST_SECONDS = 5.0
"""At most so long before the end of a lease its step is told, so that it can still finish cleanly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewal:
    """One lease: `ttl` was granted and `wanted` is asked for again, in seconds; `deadline` is monotonic."""

    lease_id: str
    vault_lease_id: str
    where: str
    ttl: int
    wanted: int
    deadline: float

    async def keep(
        self,
        vault: VaultSession,
        clock: Clock,
        record: Callable[[LeaseRenewed], Awaitable[None]],
        give_up: Callable[[StepFailed], None],
    ) -> None:
        """Renew from two thirds of the life on, until the lease outlives the step.

        Calls `give_up` shortly before the end where Vault refuses, does not answer, or grants no more time.
        """
        ttl, expires = self.ttl, clock.monotonic() + self.ttl
        reason = ""
        while expires < self.deadline and not reason:
            await asyncio.sleep(ttl * 2 / 3)
            asked_at = clock.monotonic()
            try:
                granted = await vault.renew_lease(
                    self.vault_lease_id, increment=self.wanted, deadline=expires - ttl / 6
                )
            except (VaultRefused, VaultUnavailable) as error:
                reason = error.message
                break
            until = clock.now() + timedelta(seconds=granted)
            await record(LeaseRenewed(lease_id=self.lease_id, ttl=granted, expires_at=until))
            if asked_at + granted <= expires + 1:
                reason = "the maximum TTL of its role in Vault is reached"
            ttl, expires = granted, asked_at + granted
        if reason:
            await asyncio.sleep(max(0.0, expires - clock.monotonic() - min(_LAST_SECONDS, self.ttl / 6)))
            give_up(
                StepFailed(
                    f"{self.where} ends before the step does: {reason}",
                    kind="expiry",
                    hint="raise the grant's ttl and its maximum in Vault, or shorten the step's timeout",
                )
            )
