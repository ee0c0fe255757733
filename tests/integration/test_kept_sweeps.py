"""A service asks its databases over a session that it keeps: on record like any sweep, and given back soon."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import psycopg
import pytest
from bench import Bench
from desks import AGENT, loaded_task, open_desk

from orchestrator.ledger.events import LeaseRevoked
from orchestrator.ledger.states import RunState
from orchestrator.runs.runner import Runner
from orchestrator.tasks import kept_sweeps
from orchestrator.tasks.desk import TaskDesk
from orchestrator.tasks.results import CallState

SWEEPERS = "SELECT rolname FROM pg_roles WHERE rolname LIKE 'orc\\_sweep-%'"
SESSIONS = "SELECT pid FROM pg_stat_activity WHERE usename LIKE 'orc\\_sweep-%'"


@pytest.fixture
def provisioned(bench: Bench) -> Iterator[Bench]:
    bench.install(loaded_task().workflow)
    yield bench
    bench.assert_nothing_left()


async def calls(desk: TaskDesk, number: int) -> list[str]:
    task = await desk.open(AGENT, "complaint_desk", {"customer": 1234})
    results = await asyncio.gather(*(desk.call(AGENT, task.task_id, "read", {}, f"k{each}") for each in range(number)))
    assert {(each.state, each.confirmed) for each in results} == {(CallState.DONE, True)}
    return [each.call_id for each in results]


async def eventually(condition: object, seconds: float = 60) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.05)


async def test_many_calls_are_confirmed_over_one_session(provisioned: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_sweeps, "IDLE_SECONDS", 5.0)  # a busy machine may take longer than usual between two
    monkeypatch.setattr(kept_sweeps, "KEPT_SECONDS", 60.0)
    async with open_desk(provisioned, keeps=True) as desk:
        for _ in range(3):
            await calls(desk, 8)
        (run,) = desk.services.reader.runs(workflow="(sweep)")
        assert run.state is RunState.RUNNING
        assert len(provisioned.sql(SWEEPERS)) == 1
        confirmed = [event for event in provisioned.events if isinstance(event, LeaseRevoked)]
        assert len([event for event in confirmed if event.confirmed_by == "database"]) >= 24
        asked_by = {event.witness["asked_by"] for event in confirmed if event.confirmed_by == "database"}
        assert asked_by == set(provisioned.sql(SWEEPERS)), "each has the word of the server, to the login that is kept"
        reader = desk.services.reader
        await eventually(lambda: reader.runs(workflow="(sweep)")[0].state is RunState.SUCCEEDED)
        assert provisioned.sql(SWEEPERS) == []
        await calls(desk, 1)
        assert len(desk.services.reader.runs(workflow="(sweep)")) == 2, "and another one when it is needed again"
        assert all(each.whole for each in desk.services.reader.examine_all())


async def test_it_is_not_kept_for_ever(provisioned: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_sweeps, "KEPT_SECONDS", 2.0)
    async with open_desk(provisioned, keeps=True) as desk:
        for _ in range(8):
            await calls(desk, 2)
            await asyncio.sleep(0.4)
        runs = desk.services.reader.runs(workflow="(sweep)")
        assert len(runs) >= 2
        assert all((run.finished_at - run.started_at).total_seconds() < 10 for run in runs if run.finished_at)


async def test_without_the_session_each_asks_by_itself(provisioned: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody ends it in the middle: what was asked is asked again, and no call is confirmed without an answer."""
    monkeypatch.setattr(kept_sweeps, "IDLE_SECONDS", 10.0)  # it is the one that is ended
    async with open_desk(provisioned, keeps=True) as desk:
        await calls(desk, 2)
        (pid,) = provisioned.sql(SESSIONS)
        provisioned.sql("SELECT pg_terminate_backend(%s)", [pid])
        await calls(desk, 4)
        reader = desk.services.reader
        await eventually(lambda: RunState.FAILED in {run.state for run in reader.runs(workflow="(sweep)")})
        assert all(each.whole for each in desk.services.reader.examine_all())


async def test_a_login_that_somebody_holds_on_to_holds_up_no_other_call(provisioned: Bench) -> None:
    async with open_desk(provisioned, keeps=True) as desk:
        await calls(desk, 2)
        task = await desk.open(AGENT, "complaint_desk", {"customer": 1234})
        held = await desk.call(AGENT, task.task_id, "login", {}, "held")
        assert held.handed is not None
        login = held.handed.lease.subject
        with psycopg.connect(provisioned.info.support_dsn.reveal()) as owner:
            owner.execute(f'ALTER ROLE "{login}" SET search_path TO public')  # type: ignore[arg-type]
            owner.execute("BEGIN")
            owner.execute(f'COMMENT ON ROLE "{login}" IS $$held$$')  # type: ignore[arg-type]
            giving_back = asyncio.create_task(desk.give_back(AGENT, held.handed.lease.lease_id))
            await calls(desk, 3)
            owner.rollback()
        assert await giving_back


async def test_a_service_that_ends_gives_it_back(provisioned: Bench) -> None:
    async with open_desk(provisioned, keeps=True) as desk:
        await calls(desk, 2)
        assert len(provisioned.sql(SWEEPERS)) == 1
    assert provisioned.sql(SWEEPERS) == []
    provisioned.assert_nothing_left()


@pytest.mark.parametrize(("keeps", "asked"), [(True, 0), (False, 3)], ids=["kept", "not kept"])
async def test_only_where_a_login_of_the_call_has_looked_is_the_ledger_asked_what_is_open(
    provisioned: Bench, monkeypatch: pytest.MonkeyPatch, keeps: bool, asked: int
) -> None:
    """The login that looks has an end of its own, which is of the call where no session is kept."""
    looked: list[str] = []
    look = Runner._unconfirmed
    monkeypatch.setattr(Runner, "_unconfirmed", lambda self, run_id: looked.append(run_id) or look(self, run_id))
    async with open_desk(provisioned, keeps=keeps) as desk:
        made = await calls(desk, 3)
    assert sorted(looked) == sorted(made)[:asked]
