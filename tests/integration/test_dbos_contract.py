"""What the engine relies on in DBOS 3.4, by itself: should a later version differ, this says where."""

from __future__ import annotations

import asyncio
import importlib.metadata
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from bench import Bench, Setup
from dbos import DBOS, DBOSClient, SetWorkflowID
from dbos import error as dbos_error
from dbos._serialization import DBOSPortableJSON
from orchestrator.runs.engines.dbos import SCHEMA, DbosEngine, workflow_id
from orchestrator.runs.engines.types import Walk

from orchestrator.clock import SystemClock
from orchestrator.errors import LedgerError
from orchestrator.ledger.events import RunStarted
from orchestrator.ledger.ids import new_run_id
from orchestrator.ledger.location import locate
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.states import StepState
from orchestrator.ledger.writing.store import Ledger
from orchestrator.runs.graph_walk import Graph

pytestmark = pytest.mark.parametrize("setup", ["postgresql"], indirect=True)

OK = StepState.SUCCEEDED


def test_the_version_is_the_one_that_was_measured(setup: Setup) -> None:
    assert importlib.metadata.version("dbos").startswith("3.4.")


@contextmanager
def bare(setup: Setup) -> Iterator[None]:
    """DBOS without anything of ours, launched inside a running loop or outside of one."""
    url = setup.ledger_url
    DBOS(
        config={
            "name": "bare",
            "system_database_url": url,
            "dbos_system_schema": "bare",
            "log_level": "CRITICAL",
            "serializer": DBOSPortableJSON,
        }
    )
    DBOS.launch()
    try:
        yield
    finally:
        DBOS.destroy()


def statuses(setup: Setup, schema: str) -> dict[str, str]:
    with psycopg.connect(setup.ledger_url) as session:
        query = f'SELECT workflow_uuid, status FROM "{schema}".workflow_status'
        return {str(workflow): str(status) for workflow, status in session.execute(query)}  # type: ignore[arg-type]


seen: list[str] = []


async def held() -> None:
    seen.append("begun")
    try:
        await asyncio.Event().wait()
    finally:
        seen.append("cleaned up")


@DBOS.workflow(name="contract.holds")
async def holds() -> None:
    await DBOS.run_step_async({"name": "held", "preemptible": True}, held)


@DBOS.workflow(name="contract.answers")
async def answers() -> str:
    return "an answer"


class TestBare:
    async def test_a_cancelled_task_leaves_its_workflow_pending(self, setup: Setup) -> None:
        """So the engine has to say itself that it is over."""
        with bare(setup):
            with SetWorkflowID("w"):
                task = asyncio.create_task(holds())
            await until(lambda: statuses(setup, "bare").get("w") == "PENDING")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert statuses(setup, "bare") == {"w": "PENDING"}

    async def test_a_preemptible_step_is_cancelled_and_cleans_up_when_its_workflow_is_cancelled(
        self, setup: Setup
    ) -> None:
        seen.clear()
        with bare(setup):
            with SetWorkflowID("w"):
                task = asyncio.create_task(holds())
            await until(lambda: seen == ["begun"])
            await DBOS.cancel_workflow_async("w")
            with pytest.raises(dbos_error.DBOSAwaitedWorkflowCancelledError):
                await task
            assert seen == ["begun", "cleaned up"]

    async def test_an_id_is_taken_once(self, setup: Setup) -> None:
        """Without `reject` the second caller is given the first one's answer, and nothing is carried out."""
        with bare(setup):
            for _ in range(2):
                with SetWorkflowID("w"):
                    assert await answers() == "an answer"
            with (
                pytest.raises(dbos_error.DBOSWorkflowIDInUseError),
                SetWorkflowID("w", workflow_id_reuse_policy="reject"),
            ):
                await answers()

    async def test_it_replaces_the_threads_of_the_loop_and_ends_them(self, setup: Setup) -> None:
        """So the engine gives the loop new ones before what comes after it is closed."""
        with bare(setup):
            await answers()
            await asyncio.to_thread(lambda: None)
        with pytest.raises(RuntimeError):
            await asyncio.to_thread(lambda: None)


async def until(condition: Callable[[], Any], seconds: float = 40) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        await asyncio.sleep(0.02)


@pytest.fixture
def ledger(bench: Bench, setup: Setup) -> Iterator[Ledger]:
    with open_ledger(setup.ledger_url, clock=SystemClock()) as ledger:
        yield ledger


async def begin(ledger: Ledger) -> tuple[str, int]:
    run_id = new_run_id()
    started = RunStarted(workflow="w", digest="", agent="a", trigger="test", inputs={}, steps=("a", "b"))
    return run_id, await ledger.begin_run(run_id, started)


def walk(run_id: str, fence: int, **more: Any) -> Walk:
    async def call(step: str) -> StepState:
        return OK

    async def skip(step: str, state: StepState, reason: str) -> None:
        pass

    graph = Graph(dependencies={"a": frozenset(), "b": frozenset({"a"})})
    given: dict[str, Any] = {"cancel": print, "graph": graph, "call": call, "skip": skip, "parallel": 4, **more}
    return Walk(run_id=run_id, fence=fence, **given)


class TestEngine:
    async def test_what_was_superseded_or_has_ended_is_cancelled_and_what_lives_is_not(
        self, setup: Setup, ledger: Ledger
    ) -> None:
        runs = [await begin(ledger) for _ in range(2)]
        (superseded, _), (living, fence) = runs
        engine = DbosEngine(locate(setup.ledger_url), reader=ledger, runner_id="one")

        async def never(step: str) -> StepState:
            await asyncio.Event().wait()
            return OK

        reasons: list[str] = []
        first, second = [
            asyncio.create_task(engine.drive(walk(*run, call=never, cancel=reasons.append))) for run in runs
        ]
        try:
            await until(
                lambda: set(statuses_or_none(setup).values()) == {"PENDING"} and len(statuses_or_none(setup)) == 2
            )
            assert await ledger.take_over(superseded) == fence + 1
            await engine.settle()
            assert statuses(setup, SCHEMA) == {superseded: "CANCELLED", living: "PENDING"}
            await until(lambda: reasons)
            assert reasons == ["it was cancelled in DBOS"]
        finally:
            first.cancel()
            second.cancel()
            await asyncio.wait([first, second])
            await engine.aclose()

    async def test_a_run_that_was_taken_over_is_a_workflow_of_its_own(self, setup: Setup, ledger: Ledger) -> None:
        run_id, _ = await begin(ledger)
        fence = await ledger.take_over(run_id)
        engine = DbosEngine(locate(setup.ledger_url), reader=ledger, runner_id="one")
        try:
            assert await engine.drive(walk(run_id, fence, already={"a": OK})) == {"a": OK, "b": OK}
            assert statuses(setup, SCHEMA) == {f"{run_id}#2": "SUCCESS"}
            assert workflow_id(run_id, fence) == f"{run_id}#2"
        finally:
            await engine.aclose()

    async def test_a_workflow_that_is_there_already_ends_the_run(self, setup: Setup, ledger: Ledger) -> None:
        """It would be answered from DBOS's memory, and nothing carried out."""
        run_id, fence = await begin(ledger)
        engine = DbosEngine(locate(setup.ledger_url), reader=ledger, runner_id="one")
        try:
            await engine.drive(walk(run_id, fence))
            with pytest.raises(LedgerError, match=r"does not go on with run run_.{26}: DBOSWorkflowIDInUseError"):
                await engine.drive(walk(run_id, fence))
        finally:
            await engine.aclose()

    async def test_a_walk_that_is_cancelled_before_it_begins_is_recorded_as_such(
        self, setup: Setup, ledger: Ledger
    ) -> None:
        skipped: dict[str, StepState] = {}

        async def skip(step: str, state: StepState, reason: str) -> None:
            skipped[step] = state

        run_id, fence = await begin(ledger)
        engine = DbosEngine(locate(setup.ledger_url), reader=ledger, runner_id="one")
        task = asyncio.create_task(engine.drive(walk(run_id, fence, skip=skip)))
        await asyncio.sleep(0)  # it has begun to launch DBOS
        task.cancel()
        try:
            with pytest.raises(asyncio.CancelledError):
                await task
            assert skipped == {"a": StepState.CANCELLED, "b": StepState.CANCELLED}
            assert await engine.drive(walk(*await begin(ledger))) == {"a": OK, "b": OK}, "the launch went on"
        finally:
            await engine.aclose()

    async def test_what_ends_a_walk_is_passed_on_unchanged(self, setup: Setup, ledger: Ledger) -> None:
        async def lost(step: str) -> StepState:
            raise LedgerError("the ledger is gone, password=hunter2")

        run_id, fence = await begin(ledger)
        engine = DbosEngine(locate(setup.ledger_url), reader=ledger, runner_id="one")
        try:
            with pytest.raises(LedgerError, match="the ledger is gone"):
                await engine.drive(walk(run_id, fence, call=lost))
            client = DBOSClient(system_database_url=setup.ledger_url, dbos_system_schema=SCHEMA)
            (status,) = client.list_workflows()
            client.destroy()
            assert status.status == "ERROR"
            assert "hunter2" not in repr(status)
        finally:
            await engine.aclose()

    async def test_where_its_tables_may_not_be_made_the_run_ends_and_the_next_one_tries_again(
        self, bench: Bench, setup: Setup, ledger: Ledger
    ) -> None:
        run_id, fence = await begin(ledger)
        role = "dbos_without_rights"
        with psycopg.connect(setup.ledger_url, autocommit=True) as session:
            session.execute(f"DROP SCHEMA {SCHEMA} CASCADE")  # which is there already where the ledger is a copy
        bench.sql(f"CREATE ROLE {role} LOGIN PASSWORD 'nothing'")
        database = locate(setup.ledger_url)
        try:
            restricted = locate(
                database.url.set(username=role, password="nothing").render_as_string(hide_password=False)
            )
            engine = DbosEngine(restricted, reader=ledger, runner_id="one")
            with pytest.raises(LedgerError, match="permission denied") as caught:
                await engine.drive(walk(run_id, fence))
            assert "nothing" not in str(caught.value)
            bench.sql(f"GRANT CREATE ON DATABASE setup_ledger TO {role}")
            assert await engine.drive(walk(run_id, fence)) == {"a": OK, "b": OK}
            await engine.aclose()
        finally:
            with psycopg.connect(setup.ledger_url, autocommit=True) as session:
                session.execute(f"DROP OWNED BY {role}")
            bench.sql(f"DROP ROLE {role}")

    async def test_a_process_with_a_dbos_application_of_its_own_is_told_so(self, setup: Setup, ledger: Ledger) -> None:
        run_id, fence = await begin(ledger)
        with bare(setup):
            engine = DbosEngine(locate(setup.ledger_url), reader=ledger, runner_id="one")
            with pytest.raises(LedgerError, match="a DBOS application already"):
                await engine.drive(walk(run_id, fence))
            await engine.aclose()
            assert await answers() == "an answer", "it is left alone"


def statuses_or_none(setup: Setup) -> dict[str, str]:
    try:
        return statuses(setup, SCHEMA)
    except psycopg.errors.UndefinedTable:
        return {}
