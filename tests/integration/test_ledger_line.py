"""The line in which attempts wait for places of a connection, in the ledger of both databases."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from orchestrator.errors import FenceLost
from orchestrator.ledger.events import (
    LeaseDenied,
    LeaseIssued,
    LeaseRequested,
    LeaseRevocationFailed,
    LeaseRevoking,
    LeaseVaultRevoked,
    RunFinished,
    RunResumed,
    RunStarted,
)
from orchestrator.ledger.lease import OPEN
from orchestrator.ledger.location import locate
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.places import KEPT_AFTER, Blocked, PlacesWanted
from orchestrator.ledger.states import RunState
from orchestrator.ledger.storage.connect import connect
from orchestrator.ledger.storage.places import ANSWER_MARGIN, EXPIRY_MARGIN
from orchestrator.ledger.types import LeaseFilter
from orchestrator.ledger.writing.store import Ledger

START = datetime(2026, 1, 31, 12, tzinfo=UTC)
STARTED = RunStarted(workflow="w", digest="d", agent="ann", trigger="t", inputs={}, steps=("read",))
HOST = "host-1"


class HandClock:
    """A clock that somebody sets."""

    def __init__(self) -> None:
        self.time = START

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return (self.time - START).total_seconds()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path, empty_ledger: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{shutil.copy(empty_ledger, tmp_path / 'ledger.db')}"
        return
    yield str(request.getfixturevalue("new_ledger"))


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def ledger(url: str, clock: HandClock) -> Iterator[Ledger]:
    with open_ledger(url, clock=clock) as opened:
        opened.runners.register(HOST, "{}")
        yield opened


def intent(lease_id: str, connection: str = "support", grant: str = "db", ttl: int = 60) -> LeaseRequested:
    return LeaseRequested(
        lease_id=lease_id,
        step="read",
        attempt=1,
        grant=grant,
        grant_kind="database",
        resource="x",
        scope={"connection": connection},
        ttl=ttl,
    )


async def begin(ledger: Ledger, *names: str, host: str = HOST) -> None:
    for name in names:
        await asyncio.to_thread(ledger.runners.own, name, host, digest="d", text=None)
        await ledger.begin_run(name, STARTED)


async def ask(
    ledger: Ledger, run: str, *connections: str, most: int = 1, host: str = HOST, known: bool = False, fence: int = 1
) -> Blocked | None:
    """Ask for a lease of each connection, by default of one."""
    names = connections or ("support",)
    leases = {name: names.count(name) for name in names}
    wanted = PlacesWanted("read", 1, host, leases, dict.fromkeys(leases, most), known)
    intents = [intent(f"{run}-{number}", name) for number, name in enumerate(names)]
    return await ledger.request(run, fence, wanted, (), intents)


async def close(ledger: Ledger, run: str, number: int = 0) -> None:
    await ledger.append(run, 1, [LeaseDenied(lease_id=f"{run}-{number}", reason="no")])


def line(ledger: Ledger, clock: HandClock) -> list[str]:
    return [each.run_id for each in ledger.places(clock.now()).line]


def kinds(ledger: Ledger, run: str) -> list[str]:
    return [each.kind for each in ledger.events(run)]


def whole(ledger: Ledger) -> bool:
    return all(each.whole for each in ledger.examine_all())


async def test_a_connection_has_so_many_places_over_all_processes(url: str, clock: HandClock) -> None:
    """Of leases that steps and calls have; those that look after them are not held up by what they look after."""
    with ExitStack() as stack:
        ledgers = [stack.enter_context(open_ledger(url, clock=clock)) for _ in range(4)]
        for number, each in enumerate(ledgers):
            each.runners.register(f"host-{number}", "{}")
        for number in range(20):
            await begin(ledgers[number % 4], f"run_{number}", host=f"host-{number % 4}")
        asked = [ask(ledgers[number % 4], f"run_{number}", most=5, host=f"host-{number % 4}") for number in range(20)]
        blocked = await asyncio.gather(*asked)
        has = [f"run_{number}" for number in range(20) if blocked[number] is None]
        waits = [f"run_{number}" for number in range(20) if blocked[number] is not None]
        assert len(has) == 5
        assert sorted(line(ledgers[0], clock)) == sorted(waits)
        assert ledgers[1].places(clock.now()).held == {"support": 5}
        await ledgers[0].append("run_0", 1, [intent("sweep", grant="(sweep)"), intent("other", "other")])
        assert ledgers[1].places(clock.now()).held == {"support": 5, "other": 1}
        served = []
        for _ in range(15):
            await close(ledgers[int(has[0].removeprefix("run_")) % 4], has.pop(0))
            order = line(ledgers[2], clock)
            for run in reversed(order):  # the others ask first, in vain
                host = int(run.removeprefix("run_")) % 4
                if await ask(ledgers[host], run, most=5, host=f"host-{host}", known=True) is None:
                    has.append(run)
                    served.append(run)
                    assert run == order[0]
        assert sorted(served) == sorted(waits)
        assert line(ledgers[0], clock) == []
        assert all(kinds(ledgers[3], run).count("attempt.waits") == 1 for run in waits)
        assert all(kinds(ledgers[3], run)[-2:] != ["attempt.waits"] for run in waits)
        assert whole(ledgers[1])


async def test_the_order_is_that_of_arrival_whatever_the_clocks_say(ledger: Ledger, clock: HandClock) -> None:
    await begin(ledger, "run_0", "run_1", "run_2", "run_3")
    assert await ask(ledger, "run_0") is None
    for name in ("run_3", "run_2", "run_1"):
        clock.time -= timedelta(hours=1)
        assert await ask(ledger, name)
    assert line(ledger, clock) == ["run_3", "run_2", "run_1"]
    assert [each.ticket for each in ledger.places(clock.now()).line] == [1, 2, 3]
    await close(ledger, "run_0")
    assert await ask(ledger, "run_1", known=True)
    assert await ask(ledger, "run_3", known=True) is None
    assert line(ledger, clock) == ["run_2", "run_1"]


async def test_who_waits_enters_the_line_and_its_history_in_one_transaction(ledger: Ledger, clock: HandClock) -> None:
    await begin(ledger, "run_0", "run_1")
    assert await ask(ledger, "run_0") is None
    blocked = await ask(ledger, "run_1")
    assert blocked is not None
    assert blocked.recorded is not None
    assert (blocked.connection, blocked.recorded.reason) == (
        "support",
        "1 lease of `support` is open, and no more may be",
    )
    assert kinds(ledger, "run_1") == ["run.started", "attempt.waits"]
    again = await ask(ledger, "run_1", known=True)
    assert again is not None
    assert again.recorded is None
    assert kinds(ledger, "run_1") == ["run.started", "attempt.waits"]
    (waiter,) = ledger.places(clock.now()).line
    assert waiter.key == ("run_1", "read", 1)
    assert (waiter.workflow, waiter.agent, waiter.task, waiter.since) == ("w", "ann", None, START)
    assert (waiter.leases, waiter.limits, waiter.runner_id) == ({"support": 1}, {"support": 1}, HOST)
    await close(ledger, "run_0")
    assert await ask(ledger, "run_1", known=True) is None
    assert line(ledger, clock) == []
    assert kinds(ledger, "run_1")[-1] == "lease.requested"
    assert whole(ledger)


async def test_nobody_waits_under_a_fence_that_is_lost(ledger: Ledger, clock: HandClock) -> None:
    await begin(ledger, "run_0", "run_1")
    assert await ask(ledger, "run_0") is None
    assert await ask(ledger, "run_1")
    await ledger.take_over("run_1")
    assert line(ledger, clock) == []
    with pytest.raises(FenceLost):
        await ask(ledger, "run_1", known=True)
    assert line(ledger, clock) == []
    assert await ask(ledger, "run_1", known=True, fence=2)
    assert kinds(ledger, "run_1").count("attempt.waits") == 1


def rows(url: str) -> list[str]:
    """The runs of all that is stored of the line, counted or not."""
    engine = connect(locate(url))
    with engine.connect() as connection:
        found = [str(run) for run in connection.execute(text("SELECT run_id FROM lease_waiter")).scalars()]
    engine.dispose()
    return found


async def test_who_gives_up_or_has_ended_is_out_of_line(ledger: Ledger, clock: HandClock, url: str) -> None:
    runs = ["run_1", "run_2", "run_3", "run_4"]
    await begin(ledger, "run_0", *runs)
    assert await ask(ledger, "run_0") is None
    for name in runs:
        assert await ask(ledger, name)
    await ledger.leave_line("run_2", "read", 1)
    assert line(ledger, clock) == ["run_1", "run_3", "run_4"]
    await ledger.append("run_1", 1, [RunFinished(state=RunState.CANCELLED, exit_code=1)])
    await ledger.append("run_3", 1, [RunFinished(state=RunState.INTERRUPTED, exit_code=1)])
    assert line(ledger, clock) == ["run_4"]
    assert rows(url) == ["run_4"], "nothing is left of the others"
    await ledger.resume("run_3", RunResumed(runner=HOST, reason="x"))
    assert line(ledger, clock) == ["run_4"], "what it waited for then is forgotten"
    await ledger.leave_line("run_4", "other", 1)
    assert line(ledger, clock) == ["run_4"]


@pytest.mark.parametrize("how", ["declared gone", "retired", "buried", "not entered"])
async def test_a_process_that_is_gone_holds_nobody_up(ledger: Ledger, clock: HandClock, how: str) -> None:
    await begin(ledger, "run_0", "run_2")
    dead = "host-2"
    if how != "not entered":
        ledger.runners.register(dead, "{}")
    await begin(ledger, "run_1", host=dead)
    assert await ask(ledger, "run_0") is None
    assert await ask(ledger, "run_1", host=dead)
    assert await ask(ledger, "run_2")
    if how == "retired":
        ledger.runners.retire(dead)
    elif how != "not entered":
        (record,) = [each for each in ledger.runners.all() if each.runner_id == dead]
        assert ledger.runners.declare_gone(record)
    if how == "buried":
        fence = await ledger.take_over("run_1")
        await ledger.append("run_1", fence, [RunFinished(state=RunState.INTERRUPTED, exit_code=1)])
        assert ledger.runners.claim(dead, HOST)
        assert ledger.runners.bury(dead, HOST)
    assert line(ledger, clock) == ["run_2"]
    await close(ledger, "run_0")
    assert await ask(ledger, "run_2", known=True) is None
    if how == "declared gone":  # it was only stopped, and goes on: it is asked for nothing any more
        with pytest.raises(FenceLost):
            await ask(ledger, "run_1", host=dead, known=True)


async def test_all_places_at_once_or_none(ledger: Ledger, clock: HandClock) -> None:
    await begin(ledger, "run_0", "run_1", "run_2", "run_3", "run_4")
    assert await ask(ledger, "run_0", "b") is None
    blocked = await ask(ledger, "run_1", "a", "b")
    assert blocked is not None
    assert blocked.connection == "b"
    assert await ask(ledger, "run_2", "a") is None, "who waits for `b` holds up nobody at `a`"
    await close(ledger, "run_2")
    clock.time += KEPT_AFTER
    assert await ask(ledger, "run_3", "a"), "but not for ever"
    assert await ask(ledger, "run_4", "c") is None
    await close(ledger, "run_0")
    assert await ask(ledger, "run_1", "a", "b", known=True) is None
    assert ledger.places(clock.now()).held == {"a": 1, "b": 1, "c": 1}
    assert line(ledger, clock) == ["run_3"]


async def test_those_who_want_the_same_two_are_served_by_turns_without_a_deadlock(url: str, clock: HandClock) -> None:
    with ExitStack() as stack:
        ledgers = [stack.enter_context(open_ledger(url, clock=clock)) for _ in range(4)]
        ledgers[0].runners.register(HOST, "{}")
        for number in range(24):
            await begin(ledgers[number % 4], f"run_{number}")
        pairs = (("a", "b"), ("b", "a"), ("b", "c"), ("c", "a"))

        async def work(number: int) -> None:
            ledger, run, known = ledgers[number % 4], f"run_{number}", False
            while await ask(ledger, run, *pairs[number % 4], known=known):
                known = True
                await asyncio.sleep(0.005)
            places = ledger.places(clock.now())
            assert max(places.held.values()) == 1
            await ledger.append(run, 1, [LeaseDenied(lease_id=f"{run}-{each}", reason="no") for each in (0, 1)])

        await asyncio.gather(*(work(number) for number in range(24)))
        assert line(ledgers[0], clock) == []
        assert ledgers[1].places(clock.now()).held == {}
        assert whole(ledgers[2])


async def test_a_lease_that_is_over_by_its_ttl_holds_no_place(ledger: Ledger, clock: HandClock) -> None:
    await begin(ledger, "run_0", "run_1", "run_2")
    assert await ask(ledger, "run_0") is None
    issued = LeaseIssued(lease_id="run_0-0", ttl=60, expires_at=START + timedelta(seconds=60))
    await ledger.append("run_0", 1, [issued, LeaseRevoking(lease_id="run_0-0", reason="the step has ended")])
    assert await ask(ledger, "run_1")
    clock.time = START + timedelta(seconds=60) + EXPIRY_MARGIN
    assert await ask(ledger, "run_1", known=True)
    clock.time += timedelta(milliseconds=10)
    assert ledger.places(clock.now()).held == {}
    assert await ask(ledger, "run_1", known=True) is None
    assert await ask(ledger, "run_2")
    assert len(ledger.leases(LeaseFilter(states=OPEN))) == 2, "it is on record as open until it is confirmed gone"


@pytest.mark.parametrize("asked_by", ["a living process", "a dead process", "nobody any more"])
async def test_a_lease_without_an_answer_holds_its_place_as_long_as_it_may_live(
    ledger: Ledger, clock: HandClock, asked_by: str
) -> None:
    ledger.runners.register("host-2", "{}")
    await begin(ledger, "run_0", host="host-2")
    assert await ask(ledger, "run_0", host="host-2") is None
    clock.time += timedelta(seconds=30)
    begun = START
    if asked_by == "nobody any more":
        await ledger.append("run_0", 1, [LeaseRevoking(lease_id="run_0-0", reason="outcome unknown")])
        begun = clock.time
    elif asked_by == "a dead process":
        (record,) = [each for each in ledger.runners.all() if each.runner_id == "host-2"]
        assert ledger.runners.declare_gone(record)
    clock.time = begun + timedelta(seconds=60) + ANSWER_MARGIN - timedelta(seconds=1)
    assert ledger.places(clock.now()).held == {"support": 1}
    clock.time += timedelta(seconds=2)
    held = {"support": 1} if asked_by == "a living process" else {}
    assert ledger.places(clock.now()).held == held


async def test_what_vault_has_revoked_holds_no_place_unless_the_database_has_it_still(
    ledger: Ledger, clock: HandClock
) -> None:
    await begin(ledger, "run_0")
    assert await ask(ledger, "run_0") is None
    issued = LeaseIssued(lease_id="run_0-0", ttl=60, expires_at=START + timedelta(seconds=60))
    await ledger.append("run_0", 1, [issued, LeaseRevoking(lease_id="run_0-0", reason="the step has ended")])
    assert ledger.places(clock.now()).held == {"support": 1}
    await ledger.append("run_0", 1, [LeaseVaultRevoked(lease_id="run_0-0")])
    assert ledger.places(clock.now()).held == {}
    await ledger.append("run_0", 1, [LeaseRevocationFailed(lease_id="run_0-0", error="the login is there")])
    assert ledger.places(clock.now()).held == {"support": 1}


async def test_a_request_that_fails_leaves_nobody_in_line(ledger: Ledger, clock: HandClock) -> None:
    await begin(ledger, "run_0", "run_1")
    assert await ask(ledger, "run_0") is None
    wanted = PlacesWanted("read", 1, HOST, {"support": 1}, {"support": 1})
    with pytest.raises(FenceLost):
        await ledger.request("run_1", 7, replace(wanted), (), [intent("lease_x")])
    assert line(ledger, clock) == []
    assert kinds(ledger, "run_1") == ["run.started"]
