"""Closing, from the ledger's records alone, what an earlier process could not confirm closed.

A lease is left over when its run has ended and the lease has not. It is closed as the broker would
have closed it; what Vault cannot confirm is looked for in the database. An issuance whose answer
was lost is only called gone once Vault cannot be working on it any more.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from orchestrator.credentials.closing import close_lease
from orchestrator.credentials.types import STEP_TOKEN_KIND, Attempt, LeaseHandle
from orchestrator.errors import FenceLost, IllegalTransition, OrchestratorError
from orchestrator.ledger.events import (
    Event,
    LeaseExpired,
    LeaseRevocationFailed,
    LeaseRevoked,
    LeaseRevoking,
    OrphansSwept,
    RunState,
)
from orchestrator.ledger.lease import OPEN, LeaseState
from orchestrator.ledger.runners import RunnerStore
from orchestrator.ledger.types import LeaseFilter, LeaseRecord, LedgerReader
from orchestrator.runtime.processes import certainly_gone
from orchestrator.runtime.types import Services

_ATTEMPT_SECONDS = 30.0
"""How long closing the leases of one attempt may take."""


@dataclass(frozen=True, slots=True)
class Leftover:
    """What became of one left-over lease; `confirmed` is False if it has to be tried again later."""

    lease: LeaseRecord
    confirmed: bool
    detail: str


def left_over(reader: LedgerReader, runners: RunnerStore | None = None) -> list[LeaseRecord]:
    """Every lease that is not over although its run is, newest first; with `runners` also those of dead processes."""
    records = reader.leases(LeaseFilter(states=OPEN, limit=100_000))
    over: dict[str, bool] = {}
    gone = (
        {} if runners is None else {each.runner_id: each.gone or certainly_gone(each.process) for each in runners.all()}
    )
    for record in records:
        if record.run_id not in over:
            run = reader.run(record.run_id)
            ended = run is not None and run.state is not RunState.RUNNING
            over[record.run_id] = ended or (runners is not None and gone.get(runners.owner(record.run_id) or "", False))
    return [record for record in records if over[record.run_id]]


async def close_left_over(services: Services, records: Sequence[LeaseRecord]) -> list[Leftover]:
    """Close leases of ended runs and record what could be confirmed. Safe to repeat."""
    runs: dict[str, list[LeaseRecord]] = defaultdict(list)
    for record in records:
        runs[record.run_id].append(record)
    outcome: list[Leftover] = []
    for run_id, leases in runs.items():
        try:
            fence = await services.ledger.take_over(run_id)
            outcome += await close_leases(services, fence, leases, "found open after its run had ended")
        except (FenceLost, IllegalTransition):
            continue  # another process is closing them at the same time
    return outcome


async def revoke_now(services: Services, lease: LeaseRecord) -> Leftover:
    """Take one lease back at once. Of a run that goes on the run itself records it when the step ends."""
    run = await asyncio.to_thread(services.reader.run, lease.run_id)
    if run is not None and run.state is not RunState.RUNNING:
        found = await close_left_over(services, [lease])
        return found[0] if found else Leftover(lease, False, "another process is closing it")
    deadline = services.clock.monotonic() + _ATTEMPT_SECONDS
    end = await close_lease(LeaseHandle.of(lease), services.broker.vault, deadline=deadline)
    if isinstance(end, LeaseRevoked):
        return Leftover(lease, True, "revoked in Vault; its run records it when the step ends")
    return Leftover(lease, False, getattr(end, "error", "") or "it cannot be revoked: it stays valid until it expires")


async def close_leases(
    services: Services, fence: int, leases: Sequence[LeaseRecord], reason: str, *, parent_revoked: bool = False
) -> list[Leftover]:
    """Close open leases of one run, step key by step key, from their records. Safe to repeat.

    `parent_revoked` says that the Vault token from which they hang was revoked before.
    """
    keys: dict[str, list[LeaseRecord]] = defaultdict(list)
    for lease in leases:
        keys[lease.step_key].append(lease)
    closed = [await _close_key(services, fence, own, reason, parent_revoked=parent_revoked) for own in keys.values()]
    return [each for found in closed for each in found]


async def _close_key(
    services: Services, fence: int, leases: Sequence[LeaseRecord], reason: str, *, parent_revoked: bool
) -> list[Leftover]:
    run_id = leases[0].run_id
    deadline = services.clock.monotonic() + _ATTEMPT_SECONDS
    beginning: list[Event] = [
        LeaseRevoking(lease_id=lease.lease_id, reason=reason)
        for lease in leases
        if lease.state is not LeaseState.REVOKING
    ]
    if beginning:
        await services.ledger.append(run_id, fence, beginning)
    ordered = sorted(leases, key=lambda lease: lease.grant_kind == STEP_TOKEN_KIND)
    ends = {lease.lease_id: await _close(services, lease, deadline, parent_revoked=parent_revoked) for lease in ordered}
    open_ones = [lease for lease in ordered if isinstance(ends[lease.lease_id], LeaseRevocationFailed)]
    swept = await _sweep(services, fence, open_ones, deadline)
    for lease in open_ones:
        found = swept.get(LeaseHandle.of(lease).connection or "")
        if found is not None and (found.roles or await _settled(services, lease)):
            ends[lease.lease_id] = LeaseRevoked(lease_id=lease.lease_id, confirmed_by="database")
    for lease in leases:
        if not isinstance(ends[lease.lease_id], LeaseRevocationFailed):
            services.patience.forget(lease)
    await services.ledger.append(run_id, fence, [*swept.values(), *ends.values()])
    return [
        Leftover(lease, not isinstance(end, LeaseRevocationFailed), getattr(end, "error", "") or end.kind)
        for lease in ordered
        for end in [ends[lease.lease_id]]
    ]


async def _close(
    services: Services, lease: LeaseRecord, deadline: float, *, parent_revoked: bool
) -> LeaseRevoked | LeaseRevocationFailed | LeaseExpired | Event:
    handle = replace(LeaseHandle.of(lease), unknown=lease.issued_at is None)
    end = await close_lease(handle, services.broker.vault, deadline=deadline)
    if isinstance(end, LeaseRevocationFailed) and parent_revoked and handle.grant_kind == STEP_TOKEN_KIND:
        return LeaseRevoked(lease_id=lease.lease_id, confirmed_by="vault")  # it went with the token above it
    if isinstance(end, LeaseRevocationFailed) and await _run_out(services, handle, lease):
        return LeaseExpired(lease_id=lease.lease_id)
    return end


async def _sweep(
    services: Services, fence: int, leases: Sequence[LeaseRecord], deadline: float
) -> dict[str, OrphansSwept]:
    swept: dict[str, OrphansSwept] = {}
    duties = services.broker.duties
    for lease in leases:
        connection = LeaseHandle.of(lease).connection
        if duties is None or connection is None or connection in swept:
            continue
        attempt = Attempt(
            run_id=lease.run_id,
            fence=fence,
            workflow=lease.workflow,
            step=lease.step,
            number=lease.attempt,
            agent=lease.agent,
            step_key=lease.step_key,
            scopes=(),
            policy="",
            deadline=deadline,
        )
        try:
            roles = await duties.sweep(attempt, connection, deadline=deadline)
        except OrchestratorError:
            continue
        swept[connection] = OrphansSwept(step_key=lease.step_key, connection=connection, roles=roles)
    return swept


async def _settled(services: Services, lease: LeaseRecord) -> bool:
    """Whether Vault cannot still be creating it."""
    return lease.issued_at is not None or await services.patience.waited(lease) >= services.settle


async def _run_out(services: Services, handle: LeaseHandle, lease: LeaseRecord) -> bool:
    """Whether it has ended by itself: a token in Vault, or what was perhaps issued and no database knows of.

    A lease that Vault holds and cannot revoke does not end by waiting: its credential may live on elsewhere.
    """
    if handle.connection is not None or handle.vault_lease_id:
        return False
    return await services.patience.waited(lease) >= lease.ttl + services.settle
