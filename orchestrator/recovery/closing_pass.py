"""One pass over open leases of any number of runs, from the ledger's records alone.

Vault is asked lease by lease, several step keys at once; what its answers do not settle is looked for in the
databases, in each with one login for all step keys of the pass. So the cost of a pass does not grow with the
number of runs that somebody left open, and what a pass leaves when it is cut short is a few leases of its own.

Step keys that used different databases are closed beside each other, so that one that is sick does not hold up
the others: nothing in it is waited for beyond a fixed time, and what it has no time for comes later.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from orchestrator.credentials.closing import ask_databases, close_lease, suspects_of
from orchestrator.credentials.types import STEP_TOKEN_KIND, SWEEP_GRANT, Attempt, LeaseHandle, Suspect
from orchestrator.credentials.witnesses.database import NOT_HELD
from orchestrator.errors import OrchestratorError
from orchestrator.ledger.events import (
    WHOLE_RUN,
    LeaseEvent,
    LeaseExpired,
    LeaseRevocationFailed,
    LeaseRevoked,
    LeaseRevoking,
    LeaseVaultRevoked,
    OrphansSwept,
)
from orchestrator.ledger.lease import OPEN, LeaseState
from orchestrator.ledger.types import LeaseRecord
from orchestrator.runs.types import Services

CLOSING_SECONDS = 20.0
"""Seconds that closing one lease may take, and again that asking its database may take."""

_LANE_TURNS = 3
"""After so many times its time nothing more is begun among the step keys of the same databases."""

_AT_ONCE = 8
"""Step keys of the same databases that are closed at the same time: as many as keep Vault busy."""


@dataclass(frozen=True, slots=True)
class Leftover:
    """What became of one left-over lease; `confirmed` is False if it has to be tried again later.

    `detail` says it in words, `state` is how the lease stands now where that is known.
    """

    lease: LeaseRecord
    confirmed: bool
    detail: str
    state: LeaseState | None = None


_BECAME: Mapping[LeaseState, str] = {
    LeaseState.REVOKED: "revoked, and confirmed gone",
    LeaseState.EXPIRED: "it had expired",
    LeaseState.ENDED: "let go of: nothing can revoke it, and it is valid for as long as it is anyway",
    LeaseState.REVOKING: "its revocation has begun, and nobody has confirmed its end yet",
}
"""What an end that is recorded means, where it is no error."""


@dataclass(frozen=True, slots=True)
class RunToClose:
    """Open leases of one run that is ours under `fence`, and why they are closed.

    `parent_revoked` says that the Vault token from which they hang was revoked before.
    """

    run_id: str
    fence: int
    leases: tuple[LeaseRecord, ...]
    reason: str
    parent_revoked: bool = False


@dataclass(slots=True)
class _Key:
    """The leases of one step key, and what is known of them by now."""

    run: RunToClose
    leases: Sequence[LeaseRecord]
    ends: dict[str, LeaseEvent] = field(default_factory=dict)
    """What Vault's answer says, by lease id."""
    told: list[LeaseEvent | OrphansSwept] = field(default_factory=list)
    """What the databases say."""
    silent: set[str] = field(default_factory=set)
    untried: str = ""
    error: OrchestratorError | None = None

    @property
    def ordered(self) -> list[LeaseRecord]:
        """The step's token last: its leases hang from it."""
        return sorted(self.leases, key=lambda lease: lease.grant_kind == STEP_TOKEN_KIND)

    @property
    def step_key(self) -> str:
        """What the names of its logins carry."""
        return self.leases[0].step_key

    def lease(self, lease_id: str) -> LeaseRecord:
        """One of the leases."""
        return next(lease for lease in self.leases if lease.lease_id == lease_id)

    def events(self) -> list[LeaseEvent | OrphansSwept]:
        """What to record: Vault's word beside the database's, and a failure only where neither settles it."""
        decided = {event.lease_id for event in self.told if not isinstance(event, OrphansSwept)}
        confirmed = {event.lease_id for event in self.told if isinstance(event, LeaseRevoked)}
        words = [
            end
            for lease_id, end in self.ends.items()
            if (lease_id in confirmed if isinstance(end, LeaseVaultRevoked) else lease_id not in decided)
        ]
        return [*words, *self.told]

    def outcome(self) -> list[Leftover]:
        """What became of each lease."""
        last: dict[str, LeaseEvent] = {
            event.lease_id: event for event in self.events() if not isinstance(event, OrphansSwept)
        }
        return [
            Leftover(lease, False, self.untried or "its database is yet to be asked")
            if (end := last.get(lease.lease_id)) is None
            else Leftover(
                lease, end.to not in OPEN, getattr(end, "error", "") or _BECAME.get(end.to, end.to.value), end.to
            )
            for lease in self.ordered
        ]


async def close_pass(
    services: Services, runs: Sequence[RunToClose], *, seconds: float = CLOSING_SECONDS, at_once: bool = True
) -> tuple[list[Leftover], dict[str, OrchestratorError]]:
    """Close open leases and record what could be confirmed. Safe to repeat; an error of one key hinders no other.

    `seconds` bound how long one lease, and again its database, is waited for. Without `at_once` a login that was
    made to look for others and is in doubt is not looked for with a further one: the sweep of expired logins
    finds it. The errors, one for a run, are those of step keys of which nothing could be recorded, such as FenceLost.
    """
    lanes: dict[tuple[str, ...], list[_Key]] = defaultdict(list)
    for run in runs:
        by_key: dict[str, list[LeaseRecord]] = defaultdict(list)
        for lease in run.leases:
            by_key[lease.step_key].append(lease)
        for leases in by_key.values():
            lanes[connections_of(leases)].append(_Key(run, leases))
    await asyncio.gather(*(_close_lane(services, *lane, seconds, at_once=at_once) for lane in lanes.items()))
    keys = [key for lane in lanes.values() for key in lane]
    outcome = [each for key in keys if key.error is None for each in key.outcome()]
    return outcome, {key.run.run_id: key.error for key in keys if key.error is not None}


def connections_of(leases: Sequence[LeaseRecord]) -> tuple[str, ...]:
    """The databases that the leases are in, sorted."""
    named = {LeaseHandle.of(lease).connection for lease in leases}
    return tuple(sorted(name for name in named if name))


async def _close_lane(
    services: Services, connections: tuple[str, ...], keys: Sequence[_Key], seconds: float, *, at_once: bool
) -> None:
    """Close step keys that used the same databases."""
    await _ask_vault_in_lane(services, connections, keys, seconds, at_once=at_once)
    await _ask_databases(services, [key for key in keys if key.error is None], seconds, at_once=at_once)
    await asyncio.gather(*(_record(services, key) for key in keys if key.error is None))


async def _ask_vault_in_lane(
    services: Services, connections: tuple[str, ...], keys: Sequence[_Key], seconds: float, *, at_once: bool
) -> None:
    """Have Vault revoke the leases, several step keys at once."""
    until = services.clock.monotonic() + _LANE_TURNS * seconds
    room = asyncio.Semaphore(_AT_ONCE)

    async def ask(key: _Key) -> None:
        async with room:
            if services.clock.monotonic() >= until:
                key.untried = f"not tried: {', '.join(connections)} took too long"
                return
            try:
                await _ask_vault(services, key, seconds, at_once=at_once)
            except OrchestratorError as error:
                key.error = error

    await asyncio.gather(*map(ask, keys))


async def _ask_vault(services: Services, key: _Key, seconds: float, *, at_once: bool) -> None:
    beginning = [
        LeaseRevoking(lease_id=lease.lease_id, reason=key.run.reason)
        for lease in key.leases
        if lease.state is not LeaseState.REVOKING
    ]
    if beginning:
        await services.ledger.append(key.run.run_id, key.run.fence, beginning)
    for lease in key.ordered:
        deadline = services.clock.monotonic() + seconds
        end = await _close(services, lease, deadline, parent_revoked=key.run.parent_revoked)
        if isinstance(end, LeaseRevocationFailed) and await _run_out(services, lease, at_once=at_once):
            end = LeaseExpired(lease_id=lease.lease_id)
        key.ends[lease.lease_id] = end
        if services.clock.monotonic() >= deadline:  # a login for the sweep would only be stuck as well
            key.silent |= set(connections_of([lease]))


async def _close(services: Services, lease: LeaseRecord, deadline: float, *, parent_revoked: bool) -> LeaseEvent:
    handle = LeaseHandle.of(lease)
    confirm = services.broker.confirmed_by(handle, lease.step_key)
    end = await close_lease(handle, services.broker.vault, deadline=deadline, confirm=confirm)
    if isinstance(end, LeaseRevocationFailed) and parent_revoked and handle.grant_kind == STEP_TOKEN_KIND:
        return LeaseRevoked(lease_id=lease.lease_id, confirmed_by="vault")  # it went with the token above it
    return end


async def _ask_databases(services: Services, keys: Sequence[_Key], seconds: float, *, at_once: bool) -> None:
    """Look for what Vault's answers do not settle: in each database once, for all step keys."""
    suspects = _suspects(keys)
    if not at_once:
        worth = {suspect.handle.connection for suspect in suspects if suspect.handle.grant != SWEEP_GRANT}
        suspects = [suspect for suspect in suspects if suspect.handle.connection in worth]
    if not suspects:
        return
    by_lease = {lease_id: key for key in keys for lease_id in key.ends}
    attempt = _attempt(by_lease[suspects[0].handle.lease_id], services.clock.monotonic() + seconds)
    asked = await ask_databases(suspects, attempt, services.broker.duties, deadline=attempt.deadline)
    by_step_key = {suspect.step_key: by_lease[suspect.handle.lease_id] for suspect in suspects}
    for event in asked.told:
        owner = by_step_key[event.step_key] if isinstance(event, OrphansSwept) else by_lease[event.lease_id]
        owner.told.append(event if isinstance(event, OrphansSwept) else _as_seen(event))
    decided = {event.lease_id for event in asked.told if not isinstance(event, OrphansSwept)}
    for suspect in suspects:
        lease_id, connection = suspect.handle.lease_id, suspect.handle.connection
        owner = by_lease[lease_id]
        if (problem := asked.silent.get(connection or "")) is not None:
            if suspect.vault_agrees:
                error = f"Vault has revoked it, but `{connection}` could not be asked: {problem.message}"
                owner.told.append(LeaseRevocationFailed(lease_id=lease_id, error=error))
        elif lease_id not in decided and await _settled(services, owner.lease(lease_id)):
            witness = asked.witness(suspect)
            owner.told.append(_as_seen(LeaseRevoked(lease_id=lease_id, confirmed_by="database", witness=witness)))


def _as_seen(event: LeaseEvent) -> LeaseEvent:
    """The event as a process records it that never held the password, so that it could not try it."""
    if isinstance(event, LeaseRevoked) and event.witness:
        return replace(event, witness={**event.witness, "password": NOT_HELD})
    return event


def _suspects(keys: Sequence[_Key]) -> list[Suspect]:
    """What is to be looked for, but not in databases that are silent."""
    silent = {name for key in keys for name in key.silent}
    return [
        suspect
        for key in keys
        for suspect in suspects_of(key.step_key, [LeaseHandle.of(lease) for lease in key.leases], key.ends.values())
        if suspect.handle.connection not in silent
    ]


def _attempt(key: _Key, deadline: float) -> Attempt:
    """For whom the login is made that looks into the databases."""
    lease = key.leases[0]
    return Attempt(
        run_id=key.run.run_id,
        fence=key.run.fence,
        workflow=lease.workflow,
        step=WHOLE_RUN,
        number=1,
        agent=lease.agent,
        step_key=lease.step_key,
        scopes=(),
        policy="",
        deadline=deadline,
    )


async def _record(services: Services, key: _Key) -> None:
    if not (events := key.events()):
        return
    try:
        await services.ledger.append(key.run.run_id, key.run.fence, events)
    except OrchestratorError as error:
        key.error = error
        return
    over = {event.lease_id for event in events if not isinstance(event, OrphansSwept) and event.to not in OPEN}
    for lease in key.leases:
        if lease.lease_id in over:
            services.waiting_time.forget(lease)


async def _settled(services: Services, lease: LeaseRecord) -> bool:
    """Whether Vault cannot still be creating it."""
    return await services.waiting_time.waited(lease) >= services.settle


async def _run_out(services: Services, lease: LeaseRecord, *, at_once: bool) -> bool:
    """Whether it has ended by itself: a token in Vault, or what was perhaps issued and no database knows of.

    A lease that Vault holds and cannot revoke does not end by waiting: its credential may live on elsewhere. A
    login that was made to look for others is left to the sweep of expired logins, where it is not looked for now.
    """
    handle = LeaseHandle.of(lease)
    left_alone = handle.grant == SWEEP_GRANT and not at_once
    if handle.vault_lease_id or (handle.connection is not None and not left_alone):
        return False
    return await services.waiting_time.waited(lease) >= lease.ttl + services.settle
