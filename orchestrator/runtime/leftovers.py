"""Closing, from the ledger's records alone, what an earlier process could not confirm closed.

A lease is left over when its run has ended and the lease has not. It is closed as the broker would
have closed it; what Vault cannot confirm is looked for in the database. An issuance whose answer
was lost is only called gone once Vault cannot be working on it any more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from orchestrator.credentials.closing import close_lease
from orchestrator.credentials.types import STEP_TOKEN_KIND, Attempt, LeaseHandle
from orchestrator.errors import OrchestratorError
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
from orchestrator.ledger.types import LeaseFilter, LeaseRecord
from orchestrator.runtime.types import Services

VAULT_REQUEST_LIMIT = timedelta(seconds=95)
"""After this long Vault has ended any request (its `default_max_request_duration` is 90 s)."""

_ATTEMPT_SECONDS = 30.0
"""How long closing the leases of one attempt may take."""


@dataclass(frozen=True, slots=True)
class Leftover:
    """What became of one left-over lease; `confirmed` is False if it has to be tried again later."""

    lease: LeaseRecord
    confirmed: bool
    detail: str


def left_over(services: Services) -> list[LeaseRecord]:
    """Every lease that is not over although its run is, newest first."""
    records = services.reader.leases(LeaseFilter(states=OPEN, limit=100_000))
    ended: dict[str, bool] = {}
    for record in records:
        if record.run_id not in ended:
            run = services.reader.run(record.run_id)
            ended[record.run_id] = run is not None and run.state is not RunState.RUNNING
    return [record for record in records if ended[record.run_id]]


async def close_left_over(services: Services, records: Sequence[LeaseRecord]) -> list[Leftover]:
    """Close them, attempt by attempt, and record what could be confirmed. Safe to repeat."""
    attempts: dict[tuple[str, str, int], list[LeaseRecord]] = defaultdict(list)
    for record in records:
        attempts[record.run_id, record.step, record.attempt].append(record)
    outcome: list[Leftover] = []
    for (run_id, _, _), leases in attempts.items():
        fence = await services.ledger.take_over(run_id)
        outcome += await _close_attempt(services, fence, leases)
    return outcome


async def _close_attempt(services: Services, fence: int, leases: Sequence[LeaseRecord]) -> list[Leftover]:
    run_id = leases[0].run_id
    deadline = services.clock.monotonic() + _ATTEMPT_SECONDS
    beginning: list[Event] = [
        LeaseRevoking(lease_id=lease.lease_id, reason="found open after its run had ended")
        for lease in leases
        if lease.state is not LeaseState.REVOKING
    ]
    if beginning:
        await services.ledger.append(run_id, fence, beginning)
    ordered = sorted(leases, key=lambda lease: lease.grant_kind == STEP_TOKEN_KIND)
    ends = {lease.lease_id: await _close(services, lease, deadline) for lease in ordered}
    open_ones = [lease for lease in ordered if isinstance(ends[lease.lease_id], LeaseRevocationFailed)]
    swept = await _sweep(services, fence, open_ones, deadline)
    for lease in open_ones:
        found = swept.get(LeaseHandle.of(lease).connection or "")
        if found is not None and (found.roles or _settled(services, lease)):
            ends[lease.lease_id] = LeaseRevoked(lease_id=lease.lease_id, confirmed_by="database")
    await services.ledger.append(run_id, fence, [*swept.values(), *ends.values()])
    return [
        Leftover(lease, not isinstance(end, LeaseRevocationFailed), getattr(end, "error", "") or end.kind)
        for lease in ordered
        for end in [ends[lease.lease_id]]
    ]


async def _close(
    services: Services, lease: LeaseRecord, deadline: float
) -> LeaseRevoked | LeaseRevocationFailed | LeaseExpired | Event:
    handle = replace(LeaseHandle.of(lease), unknown=lease.issued_at is None)
    end = await close_lease(handle, services.broker.vault, deadline=deadline)
    over = lease.requested_at + timedelta(seconds=lease.ttl) + VAULT_REQUEST_LIMIT
    if isinstance(end, LeaseRevocationFailed) and handle.connection is None and over < services.clock.now():
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


def _settled(services: Services, lease: LeaseRecord) -> bool:
    """Whether Vault cannot still be creating it."""
    return lease.issued_at is not None or lease.requested_at + VAULT_REQUEST_LIMIT < services.clock.now()
