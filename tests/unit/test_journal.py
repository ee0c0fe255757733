"""Deferred events go along with what is recorded next, in order, and by themselves where nothing follows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from orchestrator.clock import SystemClock
from orchestrator.errors import FenceLost, LedgerError
from orchestrator.ledger.events import (
    AttemptStarted,
    Event,
    LeaseDenied,
    LeaseIssued,
    LeaseRequested,
    LeaseRevocationFailed,
    LeaseRevoked,
    LeaseRevoking,
    LeaseVaultRevoked,
    RunStarted,
)
from orchestrator.ledger.journal import Journal
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.places import Blocked, PlacesWanted
from orchestrator.ledger.types import LedgerWriter

RUN = "run_1"
STARTED = RunStarted(workflow="w", digest="d", agent="a", trigger="t", inputs={}, steps=("s",))
UNTIL = datetime(2030, 1, 1, tzinfo=UTC)


@dataclass
class Watched:
    """A ledger that notes which events were committed together."""

    ledger: LedgerWriter
    batches: list[list[str]] = field(default_factory=list)
    away: int = 0
    """How many of the next commits fail."""

    async def append(self, run_id: str, fence: int, events: Sequence[Event]) -> None:
        self.batches.append([event.kind for event in events])
        if self.away:
            self.away -= 1
            raise LedgerError("away")
        await self.ledger.append(run_id, fence, events)

    async def request(
        self, run_id: str, fence: int, wanted: PlacesWanted, prelude: Sequence[Event], intents: Sequence[LeaseRequested]
    ) -> Blocked | None:
        if wanted.limits["support"] == 0:
            return Blocked("support", "it is full")
        raise LedgerError("whether it is there is not known")

    async def begin_run(self, run_id: str, started: RunStarted, also: Sequence[Event] = ()) -> int:
        return await self.ledger.begin_run(run_id, started, also)

    async def take_over(self, run_id: str) -> int:
        return await self.ledger.take_over(run_id)

    async def aclose(self) -> None:
        await self.ledger.aclose()


@asynccontextmanager
async def journal(path: Path) -> AsyncIterator[tuple[Journal, Watched, list[str]]]:
    """A journal of a run that has begun; when the context is left the kinds of its events are in the list."""
    kinds: list[str] = []
    with open_ledger(f"sqlite:///{path / 'ledger.db'}", clock=SystemClock()) as ledger:
        watched = Watched(ledger)
        yield Journal(watched, RUN, await ledger.begin_run(RUN, STARTED)), watched, kinds
        assert ledger.verify(RUN) is None
        kinds += [event.kind for event in ledger.events(RUN)]


def begun(number: int) -> AttemptStarted:
    return AttemptStarted(step="s", attempt=number, step_key=f"s-{number}", action="exec", timeout=1)


def requested(lease: str) -> LeaseRequested:
    return LeaseRequested(
        lease_id=lease, step="s", attempt=1, grant="g", grant_kind="database", resource="r", scope={}, ttl=1
    )


async def test_what_is_deferred_is_committed_with_what_comes_next_and_before_it(tmp_path: Path) -> None:
    async with journal(tmp_path) as (to, watched, kinds):
        to.defer(begun(1))
        await to.append(requested("lease_1"))
    assert watched.batches == [["attempt.started", "lease.requested"]]
    assert kinds == ["run.started", "attempt.started", "lease.requested"]


async def test_what_nothing_follows_is_committed_by_itself(tmp_path: Path) -> None:
    async with journal(tmp_path) as (to, watched, _):
        to.defer(begun(1))
        async with asyncio.timeout(30):
            while not watched.batches:
                await asyncio.sleep(0.001)
        await to.flush()
    assert watched.batches == [["attempt.started"]]


async def test_flushing_waits_for_what_is_on_its_way_and_writes_the_rest(tmp_path: Path) -> None:
    async with journal(tmp_path) as (to, _, kinds):
        writing = asyncio.create_task(to.append(requested("lease_1")))
        to.defer(begun(1))
        await to.flush()
        await writing
    assert sorted(kinds) == ["attempt.started", "lease.requested", "run.started"]


async def test_the_order_of_giving_is_the_order_of_the_chain_whatever_is_deferred(tmp_path: Path) -> None:
    """The end of a lease is never recorded before its beginning, though that was only deferred."""
    async with journal(tmp_path) as (to, _, kinds):
        await to.append(requested("lease_1"))
        to.defer(LeaseIssued(lease_id="lease_1", ttl=1, expires_at=UNTIL))
        first = asyncio.create_task(to.append(begun(1)))
        await asyncio.sleep(0)  # it has begun, and what it writes is on its way
        await to.append(LeaseRevoking(lease_id="lease_1", reason="x"))
        await first
    assert kinds[1:] == ["lease.requested", "lease.issued", "attempt.started", "lease.revoking"]


async def test_a_deferred_event_that_cannot_be_committed_is_told_by_the_next_call(tmp_path: Path) -> None:
    async with journal(tmp_path) as (to, watched, kinds):
        await watched.take_over(RUN)
        to.defer(begun(1))
        async with asyncio.timeout(30):
            while not watched.batches:
                await asyncio.sleep(0.001)
        with pytest.raises(FenceLost):
            await to.flush()
    assert kinds == ["run.started"]


async def test_a_cancelled_caller_takes_nothing_of_what_was_deferred_with_it(tmp_path: Path) -> None:
    async with journal(tmp_path) as (to, _, kinds):
        to.defer(begun(1))
        caller = asyncio.create_task(to.append(requested("lease_1")))
        await asyncio.sleep(0)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        await to.flush()
    assert kinds == ["run.started", "attempt.started", "lease.requested"]


async def test_what_could_not_be_committed_is_told_and_not_lost(tmp_path: Path) -> None:
    """The handle of a step's token must be on record when the ledger is back: without it nobody can take it back."""
    async with journal(tmp_path) as (to, watched, kinds):
        watched.away = 1
        to.defer(begun(1))
        async with asyncio.timeout(30):
            while not watched.batches:
                await asyncio.sleep(0.001)
        with pytest.raises(LedgerError):
            await to.append(requested("lease_1"))
        await to.append(requested("lease_2"))
    assert kinds == ["run.started", "attempt.started", "lease.requested"], "what was refused was told to its caller"


async def test_what_was_deferred_outlasts_the_failure_of_what_it_went_along_with(tmp_path: Path) -> None:
    async with journal(tmp_path) as (to, watched, kinds):
        watched.away = 1
        to.defer(begun(1))
        with pytest.raises(LedgerError):
            await to.append(requested("lease_1"))
        await to.flush()
    assert kinds == ["run.started", "attempt.started"]


async def test_what_is_to_be_committed_sooner_takes_along_what_could_have_waited(tmp_path: Path) -> None:
    async with journal(tmp_path) as (to, watched, _):
        to.defer(begun(1), within=3600)
        to.defer(requested("lease_1"), within=0.001)
        async with asyncio.timeout(10):
            while not watched.batches:
                await asyncio.sleep(0.005)
        await to.flush()
    assert watched.batches == [["attempt.started", "lease.requested"]]


ENDS: dict[str, tuple[list[Event], bool]] = {
    "requested": ([], False),
    "denied": ([LeaseDenied(lease_id="lease_1", reason="no")], True),
    "issued": ([LeaseIssued(lease_id="lease_1", ttl=1, expires_at=UNTIL)], False),
    "revoking": ([LeaseRevoking(lease_id="lease_1", reason="x")], False),
    "agreed by Vault": (
        [LeaseRevoking(lease_id="lease_1", reason="x"), LeaseVaultRevoked(lease_id="lease_1")],
        False,
    ),
    "not confirmed": (
        [LeaseRevoking(lease_id="lease_1", reason="x"), LeaseRevocationFailed(lease_id="lease_1", error="x")],
        False,
    ),
    "revoked": (
        [LeaseRevoking(lease_id="lease_1", reason="x"), LeaseRevoked(lease_id="lease_1", confirmed_by="database")],
        True,
    ),
}


@pytest.mark.parametrize(("events", "closed"), ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("deferred", [False, True], ids=["appended", "deferred"])
async def test_what_is_open_is_known(tmp_path: Path, events: list[Event], closed: bool, deferred: bool) -> None:
    async with journal(tmp_path) as (to, _, _):
        assert to.nothing_open
        await to.append(requested("lease_1"))
        assert not to.nothing_open
        if deferred:
            to.defer(*events)
        else:
            await to.append(*events)
        assert to.nothing_open is closed
        await to.flush()
        assert to.nothing_open is closed


@pytest.mark.parametrize("deferred", [False, True], ids=["appended", "deferred"])
async def test_after_a_failure_nobody_is_sure_what_is_open(tmp_path: Path, deferred: bool) -> None:
    async with journal(tmp_path) as (to, watched, _):
        await to.append(requested("lease_1"))
        watched.away = 1
        if deferred:
            to.defer(LeaseDenied(lease_id="lease_1", reason="no"))
        with pytest.raises(LedgerError):
            await to.append(*([] if deferred else [LeaseDenied(lease_id="lease_1", reason="no")]))
        assert not to.nothing_open
        await to.flush()
        assert not to.nothing_open


async def test_a_request_whose_outcome_is_not_known_may_be_open(tmp_path: Path) -> None:
    async with journal(tmp_path) as (to, _, _):
        full = PlacesWanted("s", 1, "runner-1", {"support": 1}, {"support": 0})
        assert await to.request(full, (), [requested("lease_1")]) == Blocked("support", "it is full")
        assert to.nothing_open
        with pytest.raises(LedgerError):
            await to.request(replace(full, limits={"support": 1}), (), [requested("lease_1")])
        assert not to.nothing_open
