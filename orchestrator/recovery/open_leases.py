"""Closing, from the ledger's records alone, what an earlier process could not confirm closed.

A lease is left over when its run has ended and the lease has not. It is closed as the broker would
have closed it; what Vault cannot confirm is looked for in the database. An issuance whose answer
was lost is only called gone once Vault cannot be working on it any more.

Runs that used different databases are closed beside each other, so that one that is sick does not hold up
the others: nothing in it is waited for beyond a fixed time, and what it has no time for comes later.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.credentials.closing import close_lease, gone_after_sweep, sweep_database
from orchestrator.credentials.types import STEP_TOKEN_KIND, Attempt, LeaseHandle, LoginsLeft
from orchestrator.errors import FenceLost, IllegalTransition
from orchestrator.ledger.coordination.runners import RunnerStore
from orchestrator.ledger.events import (
    Event,
    LeaseEvent,
    LeaseExpired,
    LeaseRevocationFailed,
    LeaseRevoked,
    LeaseRevoking,
    OrphansSwept,
    RunState,
)
from orchestrator.ledger.lease import OPEN, LeaseState
from orchestrator.ledger.types import LeaseFilter, LeaseRecord, LedgerReader
from orchestrator.runs.processes import certainly_gone
from orchestrator.runs.types import Services

PATIENCE = 20.0
"""Seconds that closing one lease may take, and again that asking its database may take."""

_LANE_TURNS = 3
"""After so many times its patience nothing more is begun among the runs of the same databases."""

_AT_ONCE = 8
"""Step keys that are closed at the same time: as many as keep Vault busy while the ledger writes."""


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


async def close_left_over(
    services: Services, records: Sequence[LeaseRecord], *, patience: float = PATIENCE
) -> list[Leftover]:
    """Close leases of ended runs and record what could be confirmed. Safe to repeat.

    Where a database takes longer than its time the rest of its leases is answered as not confirmed, untried.
    """
    runs: dict[str, list[LeaseRecord]] = defaultdict(list)
    for record in records:
        runs[record.run_id].append(record)
    lanes: dict[tuple[str, ...], list[list[LeaseRecord]]] = defaultdict(list)
    for leases in runs.values():
        lanes[_connections(leases)].append(leases)
    work = [_close_lane(services, names, lane, patience) for names, lane in lanes.items()]
    closed = await asyncio.gather(*work, return_exceptions=True)
    outcome: list[Leftover] = []
    for found in closed:
        if isinstance(found, BaseException):
            raise found
        outcome += found
    return outcome


async def _close_lane(
    services: Services, connections: tuple[str, ...], runs: Sequence[Sequence[LeaseRecord]], patience: float
) -> list[Leftover]:
    """Close the leases of runs that used the same databases, one run after the other."""
    until = services.clock.monotonic() + _LANE_TURNS * patience
    outcome: list[Leftover] = []
    for leases in runs:
        if services.clock.monotonic() >= until:
            outcome += [
                Leftover(lease, False, f"not tried: {', '.join(connections)} took too long") for lease in leases
            ]
            continue
        try:
            fence = await services.ledger.take_over(leases[0].run_id, ended=True)
            reason = "found open after its run had ended"
            outcome += await close_leases(services, fence, leases, reason, patience=patience)
        except (FenceLost, IllegalTransition):
            continue  # another process is closing them at the same time
    return outcome


def _connections(leases: Sequence[LeaseRecord]) -> tuple[str, ...]:
    named = {LeaseHandle.of(lease).connection for lease in leases}
    return tuple(sorted(name for name in named if name))


async def revoke_now(services: Services, lease: LeaseRecord) -> Leftover:
    """Take one lease back at once. Of a run that goes on the run itself records it when the step ends."""
    run = await asyncio.to_thread(services.reader.run, lease.run_id)
    if run is not None and run.state is not RunState.RUNNING:
        found = await close_left_over(services, [lease])
        return found[0] if found else Leftover(lease, False, "another process is closing it")
    deadline = services.clock.monotonic() + PATIENCE
    end = await close_lease(LeaseHandle.of(lease), services.broker.vault, deadline=deadline)
    if isinstance(end, LeaseRevoked):
        return Leftover(lease, True, "revoked in Vault; its run records it when the step ends")
    return Leftover(lease, False, getattr(end, "error", "") or "it cannot be revoked: it stays valid until it expires")


async def close_leases(
    services: Services,
    fence: int,
    leases: Sequence[LeaseRecord],
    reason: str,
    *,
    parent_revoked: bool = False,
    patience: float = PATIENCE,
) -> list[Leftover]:
    """Close open leases of one run, several step keys at once, from their records. Safe to repeat.

    `parent_revoked` says that the Vault token from which they hang was revoked before; `patience` is in seconds.
    An error of one key is raised once all have been tried.
    """
    keys: dict[str, list[LeaseRecord]] = defaultdict(list)
    for lease in leases:
        keys[lease.step_key].append(lease)
    room = asyncio.Semaphore(_AT_ONCE)

    async def close_key(own: Sequence[LeaseRecord]) -> list[Leftover]:
        async with room:
            return await _close_key(services, fence, own, reason, parent_revoked=parent_revoked, patience=patience)

    closed = await asyncio.gather(*map(close_key, keys.values()), return_exceptions=True)
    for found in closed:
        if isinstance(found, BaseException):
            raise found
    return [each for found in closed if not isinstance(found, BaseException) for each in found]


async def _close_key(
    services: Services,
    fence: int,
    leases: Sequence[LeaseRecord],
    reason: str,
    *,
    parent_revoked: bool,
    patience: float,
) -> list[Leftover]:
    run_id = leases[0].run_id
    beginning: list[Event] = [
        LeaseRevoking(lease_id=lease.lease_id, reason=reason)
        for lease in leases
        if lease.state is not LeaseState.REVOKING
    ]
    if beginning:
        await services.ledger.append(run_id, fence, beginning)
    ordered = sorted(leases, key=lambda lease: lease.grant_kind == STEP_TOKEN_KIND)
    ends: dict[str, LeaseEvent] = {}
    silent: set[str] = set()
    for lease in ordered:
        deadline = services.clock.monotonic() + patience
        ends[lease.lease_id] = await _close(services, lease, deadline, parent_revoked=parent_revoked)
        if services.clock.monotonic() >= deadline:  # a login for the sweep would only be stuck as well
            silent |= set(_connections([lease]))
    open_ones = [lease for lease in ordered if isinstance(ends[lease.lease_id], LeaseRevocationFailed)]
    answering = [lease for lease in open_ones if not silent & set(_connections([lease]))]
    swept = await _sweep(services, fence, answering, services.clock.monotonic() + patience)
    known = {lease.subject for lease in leases}
    for lease in open_ones:
        handle = LeaseHandle.of(lease)
        found = swept.get(handle.connection or "")
        if isinstance(found, LoginsLeft):
            ends[lease.lease_id] = LeaseRevocationFailed(lease_id=lease.lease_id, error=found.message)
        elif found is not None and (gone_after_sweep(handle, found.roles, known) or await _settled(services, lease)):
            ends[lease.lease_id] = LeaseRevoked(lease_id=lease.lease_id, confirmed_by="database")
    for lease in leases:
        if not isinstance(ends[lease.lease_id], LeaseRevocationFailed):
            services.patience.forget(lease)
    done = [found for found in swept.values() if isinstance(found, OrphansSwept)]
    await services.ledger.append(run_id, fence, [*done, *ends.values()])
    return [
        Leftover(lease, not isinstance(end, LeaseRevocationFailed), getattr(end, "error", "") or end.kind)
        for lease in ordered
        for end in [ends[lease.lease_id]]
    ]


async def _close(services: Services, lease: LeaseRecord, deadline: float, *, parent_revoked: bool) -> LeaseEvent:
    handle = LeaseHandle.of(lease)
    end = await close_lease(handle, services.broker.vault, deadline=deadline)
    if isinstance(end, LeaseRevocationFailed) and parent_revoked and handle.grant_kind == STEP_TOKEN_KIND:
        return LeaseRevoked(lease_id=lease.lease_id, confirmed_by="vault")  # it went with the token above it
    if isinstance(end, LeaseRevocationFailed) and await _run_out(services, handle, lease):
        return LeaseExpired(lease_id=lease.lease_id)
    return end


async def _sweep(
    services: Services, fence: int, leases: Sequence[LeaseRecord], deadline: float
) -> dict[str, OrphansSwept | LoginsLeft]:
    swept: dict[str, OrphansSwept | LoginsLeft] = {}
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
        found = await sweep_database(attempt, connection, duties, deadline)
        if found is not None:
            swept[connection] = found
    return swept


async def _settled(services: Services, lease: LeaseRecord) -> bool:
    """Whether Vault cannot still be creating it."""
    return await services.patience.waited(lease) >= services.settle


async def _run_out(services: Services, handle: LeaseHandle, lease: LeaseRecord) -> bool:
    """Whether it has ended by itself: a token in Vault, or what was perhaps issued and no database knows of.

    A lease that Vault holds and cannot revoke does not end by waiting: its credential may live on elsewhere.
    """
    if handle.connection is not None or handle.vault_lease_id:
        return False
    return await services.patience.waited(lease) >= lease.ttl + services.settle
