"""Leases that Vault has given up revoking: after some failed tries it marks a lease irrevocable and lets it be.

They are found in Vault's own list. Those of this ledger whose run is over are closed like any left-over
lease, by Vault if it can again and else through the database, and the ledger says what Vault had said.
Making Vault forget a lease that it could not revoke (`sys/leases/revoke-force`) is for an admin: the runtime
may not, since a lease that is forgotten too early leaves a login that nobody looks for.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.credentials.types import LeaseHandle
from orchestrator.errors import FenceLost, IllegalTransition
from orchestrator.ledger.events import LeaseRevoking
from orchestrator.ledger.lease import OPEN
from orchestrator.ledger.states import RunState
from orchestrator.ledger.types import LeaseFilter, LeaseRecord
from orchestrator.recovery.backoff import is_due
from orchestrator.recovery.closing_pass import CLOSING_SECONDS
from orchestrator.recovery.open_leases import close_left_over
from orchestrator.runs.types import Services
from orchestrator.vault.faults import VaultRefused, VaultUnavailable
from orchestrator.vault.session import IrrevocableLease

log = logging.getLogger(__name__)

_LIST_SECONDS = 10.0
"""How long Vault's list is asked for."""


@dataclass(frozen=True, slots=True)
class Irrevocable:
    """A lease that Vault tries no more to revoke. `lease` is what this ledger knows of it, if anything."""

    vault_lease_id: str
    error: str
    lease: LeaseRecord | None

    @property
    def detail(self) -> str:
        """Whether anything is still to be feared of it."""
        if self.lease is None:
            return "not of this ledger"
        if LeaseHandle.of(self.lease).connection is None:
            return "nobody but Vault can take it back; look in the system that it is for"
        if self.lease.state in OPEN:
            return "to be taken back through its database"
        return "its login is gone; only Vault's record is left"


async def close_irrevocable(services: Services, *, at_once: bool) -> tuple[Irrevocable, ...]:
    """Close what Vault has given up, as far as it is ours, and return what Vault still lists after that.

    `at_once` does not wait for pauses between tries, and asks Vault once more for leases whose login is gone.
    Raises VaultRefused or VaultUnavailable where Vault does not show its list.
    """
    found = await _listed(services)
    ours = [(each, each.lease) for each in found if each.lease is not None]
    due = [
        (each, lease)
        for each, lease in ours
        if lease.state in OPEN
        and (at_once or is_due(lease, services.clock.now()))
        and await asyncio.to_thread(_over, services, lease)
    ]
    noted = [lease for each, lease in due if await _note(services, lease, each.error)]
    await close_left_over(services, noted)
    closed = [lease for _, lease in ours if lease.state not in OPEN] if at_once else []
    await _ask_again(services, closed)
    return await _listed(services) if noted or closed else found


async def _listed(services: Services) -> tuple[Irrevocable, ...]:
    vault = services.broker.vault
    listed = await vault.irrevocable_leases(deadline=services.clock.monotonic() + _LIST_SECONDS)
    return await asyncio.to_thread(_known, services, listed)


def _known(services: Services, listed: Sequence[IrrevocableLease]) -> tuple[Irrevocable, ...]:
    """The leases with what this ledger knows of them."""
    found = []
    for each in listed:
        records = services.reader.leases(LeaseFilter(vault_lease_id=each.vault_lease_id, limit=1))
        error = services.redactor.redact(each.error)
        found.append(Irrevocable(each.vault_lease_id, error, records[0] if records else None))
    return tuple(found)


def _over(services: Services, lease: LeaseRecord) -> bool:
    run = services.reader.run(lease.run_id)
    return run is not None and run.state is not RunState.RUNNING


async def _note(services: Services, lease: LeaseRecord, error: str) -> bool:
    """Record what Vault said; False if another process is closing the lease."""
    event = LeaseRevoking(lease_id=lease.lease_id, reason=f"Vault has given up revoking it: {error}")
    try:
        fence = await services.ledger.take_over(lease.run_id, ended=True)
        await services.ledger.append(lease.run_id, fence, [event])
    except (FenceLost, IllegalTransition):
        return False
    return True


async def _ask_again(services: Services, leases: Sequence[LeaseRecord]) -> None:
    """Let Vault try leases whose login is gone: where the cause is repaired its record of them ends."""
    lanes: dict[str, list[LeaseRecord]] = defaultdict(list)
    for lease in leases:
        lanes[lease.resource].append(lease)
    await asyncio.gather(*(_ask_again_of(services, lane) for lane in lanes.values()))


async def _ask_again_of(services: Services, leases: Sequence[LeaseRecord]) -> None:
    for lease in leases:
        deadline = services.clock.monotonic() + CLOSING_SECONDS
        try:
            await services.broker.vault.revoke_lease(lease.vault_lease_id, deadline=deadline)
        except VaultRefused as refusal:
            log.info("Vault still cannot revoke %s: %s", lease.vault_lease_id, refusal.message)
        except VaultUnavailable as error:
            log.warning("Vault was not asked further about %s: %s", lease.resource, error.message)
            return
