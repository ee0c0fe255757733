"""Leases that would end before their step does: renewed, else replaced, else the step is ended in time."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from orchestrator.credentials.closing import close_lease
from orchestrator.credentials.opening import KeptLease, Opening
from orchestrator.credentials.renewal import Ending, Renewal
from orchestrator.credentials.types import LeaseHandle
from orchestrator.errors import NotRenewed, OrchestratorError, StepFailed
from orchestrator.grants.credential import Credential
from orchestrator.ledger.events import LeaseRevocationFailed, LeaseRevoking, LeaseVaultRevoked
from orchestrator.ledger.ids import new_lease_id

T = TypeVar("T")

ASK_SECONDS = 10.0
"""How long Vault is asked for what somebody waits for."""


class Upkeep:
    """Looks after the leases of one attempt while its action runs.

    `on_expiry` is called once if a lease is about to end before the step's deadline and nothing helps; `deliver`
    brings a credential that was issued anew to the action, and raises StepFailed if that is impossible.
    `retired` are the leases that Vault took back meanwhile: their database is asked when the step is over, since
    a sweep by step key would also drop what has taken their place.
    """

    def __init__(self) -> None:
        self.on_expiry: Callable[[OrchestratorError], None] = lambda error: None
        self.deliver: Callable[[Credential], Awaitable[None]] = _takes_nothing
        self.retired: list[tuple[LeaseHandle, LeaseVaultRevoked]] = []
        self.under_way: set[asyncio.Task[Any]] = set()
        """What goes on when its waiter is cancelled: closing waits for it."""
        self._tasks: list[asyncio.Task[Any]] = []
        self._on_demand: KeptLease | None = None
        self.ends: float | None = None
        """When the lease ends that is renewed on demand only (monotonic); None where there is none."""

    def keep(self, opening: Opening, lease: KeptLease) -> None:
        """Look after a lease from now on."""
        if opening.attempt.held_by_agent:
            self._on_demand, self.ends = lease, opening.broker.clock.monotonic() + lease.ttl
            return
        self._tasks.append(asyncio.create_task(self._look_after(opening, lease), name=f"look after {lease.lease_id}"))

    async def renew(self, opening: Opening) -> float:
        """Renew the lease that is renewed on demand, up to the end of the attempt; when it ends (monotonic).

        Raises NotRenewed, VaultRefused, VaultUnavailable and LedgerError.
        """
        task = asyncio.create_task(self._renew_once(opening))
        self._tasks.append(task)
        try:
            await asyncio.wait({task})
        finally:
            self._tasks.remove(task)
            task.cancel()
        if task.cancelled():
            raise NotRenewed("it is given back")
        return task.result()

    async def _renew_once(self, opening: Opening) -> float:
        lease, clock = self._on_demand, opening.broker.clock
        assert lease is not None
        assert self.ends is not None
        now, latest = clock.monotonic(), opening.attempt.deadline
        renewal = Renewal(
            lease_id=lease.lease_id,
            vault_lease_id=lease.vault_lease_id,
            ttl=lease.ttl,
            wanted=max(1, min(lease.scope.ttl, math.ceil(latest - now))),
            deadline=latest,
        )
        until = min(self.ends, now + ASK_SECONDS)
        _, self.ends = await renewal.once(opening.broker.vault, clock, opening.run.journal.append, deadline=until)
        return self.ends

    def stop(self) -> None:
        """Renew and replace nothing more."""
        for task in self._tasks:
            task.cancel()

    async def _look_after(self, opening: Opening, lease: KeptLease) -> None:
        """Renew a lease, then replace it if its grant says so; where neither helps have the step end in time."""
        clock = opening.broker.clock
        renewal = Renewal(
            lease_id=lease.lease_id,
            vault_lease_id=lease.vault_lease_id,
            ttl=lease.ttl,
            wanted=lease.scope.ttl,
            deadline=opening.attempt.deadline,
        )
        try:
            ending = await renewal.keep(opening.broker.vault, clock, opening.run.journal.append)
        except OrchestratorError as error:
            self.on_expiry(error)
            return
        except Exception as error:  # noqa: BLE001 -- a lease that nobody looks after must end its step in time
            self.on_expiry(StepFailed(f"{opening.where(lease.scope)} cannot be renewed: {type(error).__name__}"))
            return
        if ending is None:
            return
        reason = ending.reason
        if lease.scope.on_expiry == "reissue":
            try:
                await self._replace(opening, lease, ending)
            except OrchestratorError as error:
                reason = f"{reason}, and no other one could take its place: {error.message}"
            else:
                return
        await asyncio.sleep(max(0.0, ending.last_call - clock.monotonic()))
        self.on_expiry(
            StepFailed(
                f"{opening.where(lease.scope)} ends before the step does: {reason}",
                kind="expiry",
                hint="raise the grant's ttl and its maximum in Vault, or shorten the step's timeout",
            )
        )

    async def _replace(self, opening: Opening, lease: KeptLease, ending: Ending) -> None:
        """Issue a new lease, hand it to the action, and revoke the old one when both have been valid for a while.

        Raises OrchestratorError if the action does not have it before the old one ends.
        """
        clock, successor = opening.broker.clock, new_lease_id()
        left = max(0.0, ending.last_call - clock.monotonic())
        try:
            async with asyncio.timeout(left):
                issuance = self._issue_anew(opening, successor, lease, ending.last_call)
                await self.deliver(await self._never_abandoned(issuance))
        except TimeoutError:
            raise StepFailed("it was not issued and handed over in time", kind="expiry") from None
        await asyncio.sleep(max(0.0, min(lease.scope.overlap, ending.expires - clock.monotonic())))
        await self._never_abandoned(self._retire(opening, lease.lease_id, f"{successor} has taken its place"))

    async def _issue_anew(self, opening: Opening, lease_id: str, old: KeptLease, deadline: float) -> Credential:
        assert opening.step_token is not None, "it is kept until everything that is under way has been settled"
        await opening.run.journal.append(opening.requested(lease_id, old.scope))
        return await opening.issue(lease_id, old.scope, opening.step_token, version=old.version + 1, deadline=deadline)

    async def _retire(self, opening: Opening, lease_id: str, reason: str) -> None:
        """Take one lease back while the step goes on. What cannot be confirmed now is tried again at its end."""
        handle = next(each for each in opening.held if each.lease_id == lease_id)
        await opening.run.journal.append(LeaseRevoking(lease_id=lease_id, reason=reason))
        deadline = opening.broker.clock.monotonic() + opening.broker.grace
        confirm = opening.broker.confirmed_by(handle, opening.attempt.step_key)
        end = await close_lease(handle, opening.broker.vault, deadline=deadline, confirm=confirm)
        await opening.run.journal.append(end)
        if isinstance(end, LeaseVaultRevoked):
            self.retired.append((handle, end))
            if (dead := opening.to_try.pop(lease_id, None)) is not None:
                opening.run.try_login(dead, deadline=deadline)
        if not isinstance(end, LeaseRevocationFailed):
            opening.held.remove(handle)

    async def _never_abandoned(self, work: Coroutine[Any, Any, T]) -> T:
        """Work that goes on when whoever waits for it is cancelled; closing waits for it."""
        task = asyncio.create_task(work)
        self.under_way.add(task)
        task.add_done_callback(self.under_way.discard)
        return await asyncio.shield(task)


async def _takes_nothing(credential: Credential) -> None:
    raise StepFailed("the step takes no new credential while it runs", kind="expiry")
