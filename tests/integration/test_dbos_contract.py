"""What the queue relies on in DBOS 3.4, by itself: should a later version differ, this says where."""

from __future__ import annotations

import asyncio
import gc
import importlib.metadata
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from bench import Bench, Setup
from dbos import DBOS
from dbos._core import ActiveWorkflowById
from dbos._serialization import DBOSPortableJSON
from dbos._sys_db import WorkflowStatusString
from queued import put, shared
from sqlalchemy import Connection
from test_dbos_rows import JOB, execute, status_of, until

from orchestrator.actions.catalog import catalog
from orchestrator.clock import SystemClock
from orchestrator.errors import LedgerError
from orchestrator.ledger.events import RunStarted
from orchestrator.ledger.location import locate
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.states import RunState
from orchestrator.queue import tables
from orchestrator.queue.executor import Asked, Executor, GivenBack, Room, _Load
from orchestrator.queue.lanes import Limits
from orchestrator.queue.names import FORMAT, SCHEMA
from orchestrator.queue.opening import shared_queue
from orchestrator.queue.shared import SharedQueue
from orchestrator.queue.tables import QueueState
from orchestrator.workflow.loader import LoadedWorkflow, load_text

pytestmark = [
    pytest.mark.parametrize("setup", ["queue"], indirect=True),
    # DBOS waits for no thread of its own that is about to give a connection back when it ends, see `executor`.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


def test_the_version_is_the_one_that_was_measured(setup: Setup) -> None:
    assert importlib.metadata.version("dbos").startswith("3.4.")


def job(top: str = "", name: str = "job") -> LoadedWorkflow:
    text = JOB.replace("name: job", f"name: {name}").replace("agent: tester", f"agent: tester\n{top}")
    return load_text(text, filename="job.yaml", actions=catalog)


@dataclass
class Hands(Room):
    """DBOS in this process as an executor, with the room that a test wants, and what it has been handed."""

    queue: SharedQueue
    room: int = 100
    closed: set[str] = field(default_factory=set)
    handed: list[str] = field(default_factory=list)
    work: Callable[[str], Any] | None = None

    def left(self) -> int:
        return self.room

    def is_closed(self, workflow: str) -> bool:
        return workflow in self.closed

    async def carry(self, run_id: str, asked: Asked) -> str:
        self.handed.append(run_id)
        if self.work is not None:
            await self.work(run_id)
        return RunState.SUCCEEDED

    def states(self) -> dict[str, QueueState]:
        return {each.run_id: each.state for each in self.queue.list(set(QueueState))}


@asynccontextmanager
async def executor(setup: Setup, worker: str = "one", **how: Any) -> AsyncIterator[Hands]:
    with shared(setup.ledger_url) as queue:
        hands = Hands(queue, **how)
        launched = Executor(locate(setup.ledger_url), worker=worker, room=hands, carry=hands.carry)
        await launched.launch()
        try:
            yield hands
            if hands.work is None:  # how it ended is being recorded, over a connection of DBOS's
                await until(lambda: not launched.active)
        finally:
            await launched.aclose()
            gc.collect()  # what DBOS has left open is of this test, and not of one that comes later


async def looks(monkeypatch: pytest.MonkeyPatch, name: str, times: int = 3) -> None:
    """Wait until DBOS has asked so often how many go on here."""
    asked: list[object] = []
    counted = getattr(_Load, name)
    assert counted is not getattr(ActiveWorkflowById, name), "what is replaced is DBOS's"

    def count(self: Any, *given: Any) -> Any:
        asked.append(given)
        return counted(self, *given)

    with monkeypatch.context() as patched:
        patched.setattr(_Load, name, count)
        await until(lambda: len(asked) >= times)


class TestRoom:
    """`_active_workflows_set`: what DBOS asks before it claims."""

    async def test_nothing_is_claimed_while_there_is_no_room(
        self, setup: Setup, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with executor(setup, room=0) as hands:
            run_id = put(hands.queue, job())
            await looks(monkeypatch, "count_for_queue")
            assert hands.states() == {run_id: QueueState.WAITING}
            hands.room = 1
            await until(lambda: hands.handed == [run_id])

    async def test_no_more_is_claimed_in_one_look_than_there_is_room_for(self, setup: Setup) -> None:
        async def stay(run_id: str) -> None:
            hands.room -= 1
            await asyncio.Event().wait()

        async with executor(setup, room=0, work=stay) as hands:
            for name in ("one", "two", "one", "two"):
                put(hands.queue, job(name=name))
            hands.room = 3
            await until(lambda: len(hands.handed) == 3 and hands.room == 0)
            assert sorted(hands.states().values()) == [QueueState.RUNNING] * 3 + [QueueState.WAITING]

    async def test_nothing_of_a_workflow_is_claimed_that_is_closed_here(
        self, setup: Setup, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with executor(setup, closed={"shut"}) as hands:
            shut, open_ = put(hands.queue, job(name="shut")), put(hands.queue, job(name="open"))
            await until(lambda: hands.handed == [open_])
            await looks(monkeypatch, "count_for_partition")
            assert hands.states() == {shut: QueueState.WAITING}
            hands.closed.clear()
            await until(lambda: hands.handed == [open_, shut])

    async def test_of_workflows_with_one_run_at_once_it_does_not_ask(self, setup: Setup) -> None:
        """So whoever carries a run looks at the pauses, too."""
        async with executor(setup, closed={"job"}) as hands:
            run_id = put(hands.queue, job("max_runs: 1"))
            await until(lambda: hands.handed == [run_id])


class TestClaims:
    @pytest.mark.parametrize(
        ("limits", "most"), [(Limits(), 24), (Limits(5), 5), (Limits(1), 1), (Limits(None, 3, 3600), 3)]
    )
    def test_whoever_claims_excludes_every_other_and_a_limit_holds(
        self, setup: Setup, limits: Limits, most: int
    ) -> None:
        top = f"max_runs: {limits.most}" if limits.most else "rate_limit: { runs: 3, per: 1h }" if limits.begun else ""
        with shared(setup.ledger_url) as queue:
            runs = {put(queue, job(top)) for _ in range(24)}
        start = threading.Barrier(8)

        def claim(worker: int) -> list[str]:
            with shared(setup.ledger_url) as own:
                own.prepare()
                start.wait()
                return [each for _ in range(6) for each in claimed_by(own, f"worker-{worker}", limits)]

        with ThreadPoolExecutor(8) as pool:
            claimed = [run_id for each in pool.map(claim, range(8)) for run_id in each]
        assert len(claimed) == len(set(claimed)) == most
        assert set(claimed) <= runs
        with shared(setup.ledger_url) as queue:
            assert {each.run_id for each in queue.claimed()} == set(claimed)

    async def test_an_entry_is_there_with_what_belongs_to_it_or_not_at_all(self, setup: Setup) -> None:
        with shared(setup.ledger_url) as queue:
            run_id = put(queue, job())
            entry = queue.requests.get(run_id)
            assert entry is not None
            assert not queue.add(entry, workflow="text", limits=Limits()), "it is there"
            other = replace(entry, run_id="other")

            def cut_off(connection: Connection) -> None:
                queue._enqueue(connection, other, Limits(), 100, 0.0)
                raise RuntimeError

            with pytest.raises(RuntimeError):
                queue.requests.add(other, workflow="text", along=cut_off)
            assert queue.requests.get("other") is None
            assert [each.run_id for each in queue.list(set(QueueState))] == [run_id]

    async def test_a_queue_that_is_registered_meanwhile_is_looked_into(self, setup: Setup) -> None:
        async with executor(setup) as hands:
            run_id = put(hands.queue, job("max_runs: 17"))
            await until(lambda: hands.handed == [run_id])

    async def test_an_entry_that_says_no_version_is_for_those_of_the_latest(self, setup: Setup) -> None:
        """`create_application_version`: other programs need not know which one it is."""
        async with executor(setup, room=0) as hands:
            run_id = put(hands.queue, job())
            execute(setup, "UPDATE workflow_status SET application_version = NULL")
            hands.room = 1
            await until(lambda: hands.handed == [run_id])
            assert execute(setup, "SELECT version_name FROM application_versions") == [(FORMAT,)]

    async def test_what_is_given_back_is_not_recorded_as_over(self, setup: Setup) -> None:
        async def give_back(run_id: str) -> None:
            hands.work = None
            assert hands.queue.hold(run_id, "one", limits=None, workflow="job")
            raise GivenBack

        async with executor(setup, work=give_back) as hands:
            run_id = put(hands.queue, job())
            await until(lambda: status_of(setup, run_id) == "SUCCESS")
            assert hands.handed == [run_id, run_id]

    async def test_of_an_error_only_its_kind_is_stored(self, setup: Setup) -> None:
        async def fails(run_id: str) -> None:
            raise LedgerError("the ledger is gone, password=hunter2")

        async with executor(setup, work=fails) as hands:
            run_id = put(hands.queue, job())
            await until(lambda: status_of(setup, run_id) == "ERROR")
        [(error,)] = execute(setup, "SELECT error FROM workflow_output")
        assert "hunter2" not in error
        assert "LedgerError" in error


PLAIN = Limits()


def claimed_by(queue: SharedQueue, worker: str, limits: Limits = PLAIN) -> list[str]:
    """What a look of DBOS's hands to this worker, without carrying it out."""
    system: Any = queue._client._sys_db
    lane = system.get_queue(limits.lane)
    if limits.most == 1:
        found: list[str] = system.start_queued_partitioned_workflows(
            lane, worker, FORMAT, 100, owner_xid=f"by {worker}"
        )
        return found
    try:
        return list(system.start_queued_workflows(lane, worker, FORMAT, "job", 0, 0, owner_xid=f"by {worker}")[0])
    except Exception as error:
        if system.is_lock_conflict(error) or system.is_serialization_conflict(error):
            return []
        raise


@pytest.fixture
def queue(setup: Setup) -> Iterator[SharedQueue]:
    with shared(setup.ledger_url) as queue:
        queue.prepare()
        yield queue


def state_of(queue: SharedQueue, run_id: str) -> QueueState | None:
    return {each.run_id: each.state for each in queue.list(set(QueueState))}.get(run_id)


class TestStatements:
    """Those of `orchestrator/queue/tables.py`, each held against what DBOS claims afterwards."""

    def test_what_is_held_without_a_time_is_claimed_again_at_once(self, queue: SharedQueue) -> None:
        run_id = put(queue, job())
        assert claimed_by(queue, "one") == [run_id]
        assert claimed_by(queue, "two") == []
        assert not queue.hold(run_id, "two", limits=None, workflow="job"), "it is not that one's"
        assert queue.hold(run_id, "one", limits=None, workflow="job")
        assert not queue.hold(run_id, "one", limits=None, workflow="job"), "it has it no more"
        assert state_of(queue, run_id) is QueueState.WAITING
        assert claimed_by(queue, "two") == [run_id]
        [claimed] = queue.claimed()
        assert (claimed.run_id, claimed.worker, claimed.lane, claimed.workflow) == (run_id, "two", "runs", "job")

    def test_what_is_held_until_a_time_is_claimed_when_it_has_come(self, queue: SharedQueue) -> None:
        now = SystemClock().now()
        run_id = put(queue, job())
        claimed_by(queue, "one")
        assert queue.hold(run_id, "one", limits=None, workflow="job", until=now + timedelta(hours=1))
        queue.enqueue_due()
        assert claimed_by(queue, "two") == []
        [listed] = queue.list({QueueState.DELAYED})
        assert listed.until is not None
        assert abs(listed.until - now - timedelta(hours=1)) < timedelta(seconds=1)
        queue.wake(run_id)
        queue.enqueue_due()
        assert claimed_by(queue, "two") == [run_id]
        assert queue.hold(run_id, "two", limits=None, workflow="job", until=now - timedelta(seconds=1))
        assert claimed_by(queue, "one") == [], "nobody has looked what is due"
        queue.enqueue_due()
        assert claimed_by(queue, "one") == [run_id]

    def test_what_is_held_within_other_limits_is_claimed_within_those(self, queue: SharedQueue) -> None:
        first, second = put(queue, job()), put(queue, job())
        assert set(claimed_by(queue, "one")) == {first, second}
        for run_id in (first, second):
            assert queue.hold(run_id, "one", limits=Limits(1), workflow="job")
        assert claimed_by(queue, "two") == []
        assert claimed_by(queue, "two", Limits(1)) == [first]
        assert claimed_by(queue, "one", Limits(1)) == []

    def test_a_held_one_has_no_place_and_no_share_of_a_rate(self, queue: SharedQueue) -> None:
        limits = Limits(None, 3, 3600)
        runs = [put(queue, job("rate_limit: { runs: 3, per: 1h }")) for _ in range(4)]
        assert sorted(claimed_by(queue, "one", limits)) == sorted(runs[:3])
        assert claimed_by(queue, "one", limits) == []
        until = SystemClock().now() + timedelta(hours=1)
        assert queue.hold(runs[0], "one", limits=None, workflow="job", until=until)
        assert claimed_by(queue, "one", limits) == [runs[3]]

    def test_a_buried_one_is_dead_and_nobody_claims_or_wakes_it(self, queue: SharedQueue) -> None:
        run_id = put(queue, job("max_runs: 1"))
        assert claimed_by(queue, "one", Limits(1)) == [run_id]
        assert not queue.bury(run_id, "two")
        assert queue.bury(run_id, "one")
        assert state_of(queue, run_id) is QueueState.DEAD
        queue.wake(run_id)
        queue.enqueue_due()
        assert claimed_by(queue, "two", Limits(1)) == []
        behind = put(queue, job("max_runs: 1"))
        assert claimed_by(queue, "two", Limits(1)) == [behind], "it has no place"
        assert queue.counts()[QueueState.DEAD] == 1
        assert queue.remove(run_id)
        assert state_of(queue, run_id) is None

    async def test_what_waits_is_taken_out_and_what_is_claimed_or_has_begun_is_not(
        self, setup: Setup, queue: SharedQueue
    ) -> None:
        run_id = put(queue, job())
        claimed_by(queue, "one")
        assert not queue.remove(run_id)
        assert queue.hold(run_id, "one", limits=None, workflow="job")
        with open_ledger(setup.ledger_url, clock=SystemClock()) as ledger:
            started = RunStarted(workflow="job", digest="d", agent="a", trigger="queue", inputs={}, steps=())
            await ledger.begin_run(run_id, started)
        assert not queue.remove(run_id)
        waits = put(queue, job())
        assert queue.remove(waits)
        assert not queue.remove(waits)
        assert claimed_by(queue, "two") == [run_id]
        assert status_of(setup, waits) == "CANCELLED"

    def test_a_dead_workers_run_is_put_back_once_before_those_that_came_later(self, queue: SharedQueue) -> None:
        """`reenqueue_for_recovery`."""
        first = put(queue, job("max_runs: 1"))
        later = put(queue, job("max_runs: 1"))
        assert claimed_by(queue, "dead", Limits(1)) == [first]
        [claimed] = queue.claimed()
        assert queue.put_back(claimed)
        assert not queue.put_back(claimed)
        assert claimed_by(queue, "one", Limits(1)) == [first]
        assert not queue.put_back(claimed), "another one has it"
        assert state_of(queue, later) is QueueState.WAITING

    def test_what_is_no_run_is_dropped(self, setup: Setup, queue: SharedQueue) -> None:
        run_id = put(queue, job("max_runs: 1"))
        execute(setup, "UPDATE workflow_status SET name = 'other'")
        assert claimed_by(queue, "one", Limits(1)) == [run_id], "DBOS claims whatever name it has"
        [claimed] = queue.claimed()
        assert not claimed.is_run
        assert queue.drop(claimed)
        assert not queue.drop(claimed)
        behind = put(queue, job("max_runs: 1"))
        assert claimed_by(queue, "one", Limits(1)) == [behind]
        [claimed] = queue.claimed()
        assert claimed.is_run

    def test_what_is_cancelled_in_dbos_is_told_and_what_it_does_not_have_is_entered(
        self, setup: Setup, queue: SharedQueue
    ) -> None:
        cancelled, missing, waits = (put(queue, job()) for _ in range(3))
        queue._client.cancel_workflow(cancelled)
        queue._client.delete_workflows([missing])
        assert queue.cancelled() == [cancelled]
        [entry] = queue.not_entered()
        assert entry.run_id == missing
        for _ in range(2):
            queue.enter(entry, limits=Limits())
        assert queue.not_entered() == []
        assert sorted(claimed_by(queue, "one")) == sorted([missing, waits])

    def test_what_waits_is_counted_and_told_since_when(self, queue: SharedQueue) -> None:
        assert queue.waits_since() is None
        put(queue, job(), delay=3600.0)
        assert queue.waits_since() is None
        before = SystemClock().now()
        put(queue, job())
        since = queue.waits_since()
        assert since is not None
        assert abs(since - before) < timedelta(seconds=30)
        assert (queue.counts()[QueueState.WAITING], queue.counts()[QueueState.DELAYED]) == (1, 1)

    def test_only_what_has_been_over_for_long_is_deleted(self, setup: Setup, queue: SharedQueue) -> None:
        old, young, dead, waits = (put(queue, job()) for _ in range(4))
        claimed_by(queue, "one")
        for run_id, state in ((old, "SUCCESS"), (young, "SUCCESS")):
            execute(setup, "UPDATE workflow_status SET status = %s WHERE workflow_uuid = %s", state, run_id)
        assert queue.bury(dead, "one")
        execute(setup, "UPDATE workflow_status SET updated_at = 1 WHERE workflow_uuid <> %s", young)
        assert queue.tidy(SystemClock().now()) == 1
        kept = {str(row[0]) for row in execute(setup, "SELECT workflow_uuid FROM workflow_status")}
        assert kept == {young, dead, waits}


class TestTables:
    def test_they_are_made_and_brought_up_to_date_by_whoever_needs_them(self, setup: Setup) -> None:
        """`run_migrations`, outside of a launched DBOS."""
        execute(setup, f"DROP SCHEMA {SCHEMA} CASCADE")
        with shared(setup.ledger_url) as queue:
            run_id = put(queue, job())
            assert claimed_by(queue, "one") == [run_id]
        before = execute(setup, "SELECT version FROM dbos_migrations")
        assert execute(setup, "SELECT version_name FROM application_versions") == [(FORMAT,)], "before any worker"
        with shared(setup.ledger_url) as queue:
            queue.prepare()
        assert execute(setup, "SELECT version FROM dbos_migrations") == before

    def test_where_they_may_not_be_made_that_is_said_and_the_next_one_tries_again(
        self, bench: Bench, setup: Setup
    ) -> None:
        role = "dbos_without_rights"
        execute(setup, f"DROP SCHEMA {SCHEMA} CASCADE")
        bench.sql(f"CREATE ROLE {role} LOGIN PASSWORD 'nothing'")
        url = locate(setup.ledger_url).url.set(username=role, password="nothing")
        try:
            with ExitStack() as stack:
                ledger = stack.enter_context(open_ledger(setup.ledger_url, clock=SystemClock()))
                queue = stack.enter_context(shared_queue(url.render_as_string(hide_password=False), ledger.queue))
                with pytest.raises(LedgerError, match="permission denied") as caught:
                    queue.prepare()
                assert "nothing" not in str(caught.value)
                bench.sql(f"GRANT CREATE ON DATABASE setup_ledger TO {role}")
                queue.prepare()
                assert queue.claimed() == []
        finally:
            with psycopg.connect(setup.ledger_url, autocommit=True) as session:
                session.execute(f"DROP OWNED BY {role}")
            bench.sql(f"DROP ROLE {role}")


@DBOS.workflow(name="contract.answers")
def answers() -> str:
    return "an answer"


@contextmanager
def bare(setup: Setup) -> Iterator[None]:
    """DBOS without anything of ours."""
    DBOS(
        config={
            "name": "bare",
            "system_database_url": setup.ledger_url,
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


async def test_a_process_with_a_dbos_application_of_its_own_is_told_so(setup: Setup) -> None:
    def with_another() -> None:
        with bare(setup):
            with pytest.raises(LedgerError, match="a DBOS application already"):
                asyncio.run(launch())
            assert answers() == "an answer", "it is left alone"

    async def launch() -> None:
        async with executor(setup):
            pass

    await asyncio.to_thread(with_another)
    async with executor(setup) as hands:
        run_id = put(hands.queue, job())
        await until(lambda: hands.handed == [run_id])


def test_each_name_of_a_queue_state_is_one_of_dboss(setup: Setup) -> None:
    assert set(tables.STATES) <= {each.value for each in WorkflowStatusString}
