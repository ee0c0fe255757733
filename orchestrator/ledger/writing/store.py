"""The ledger: one object that writes, from async code, and reads, from anywhere."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.clock import Clock
from orchestrator.ledger.coordination.agents import AgentStore
from orchestrator.ledger.coordination.approvals import ApprovalStore
from orchestrator.ledger.coordination.queue import RunQueue
from orchestrator.ledger.coordination.runners import RunnerStore
from orchestrator.ledger.events import Event, LeaseRequested, RunResumed, RunStarted, ValuesDropped
from orchestrator.ledger.faults import ledger_error
from orchestrator.ledger.location import Location
from orchestrator.ledger.log.store import LogStore
from orchestrator.ledger.places import Blocked, PlacesWanted
from orchestrator.ledger.reading.reader import Reader
from orchestrator.ledger.storage.times import time_to_text
from orchestrator.ledger.task_events import TaskCalled, TaskClosed, TaskOpened
from orchestrator.ledger.types import CallLimits
from orchestrator.ledger.writing.committer import Committer
from orchestrator.ledger.writing.group_commit import GroupCommit
from orchestrator.ledger.writing.jobs import (
    Append,
    BeginCall,
    BeginRun,
    CloseTask,
    DropValues,
    LeaveLine,
    Request,
    Resume,
    TakeOver,
)
from orchestrator.ledger.writing.rebuild import rebuild
from orchestrator.ledger.writing.transaction import Entry


class Ledger(Reader):
    """Implements LedgerWriter and LedgerReader. Made by `open_ledger`; close it, or use it in a `with`.

    The writing methods may be awaited from any event loop. If their task is cancelled, what they were
    given is still recorded, or refused, as a whole; shield them to learn which.
    """

    def __init__(self, engine: Engine, location: Location, clock: Clock) -> None:
        super().__init__(engine, location.label)
        self._clock = clock
        self._writer = GroupCommit(Committer(engine, location))
        self.runners = RunnerStore(engine, location.label)
        """The processes that run workflows."""
        self.queue = RunQueue(engine, location.label)
        """The runs that wait for a worker."""
        self.approvals = ApprovalStore(engine, location.label)
        """What waits for somebody to agree."""
        self.log: LogStore = LogStore(engine, location.label)
        """The log over all runs."""
        self.agents = AgentStore(engine, location.label)
        """The agents that are cut off."""

    @property
    def has_written(self) -> bool:
        """Whether this process has added to any history."""
        return self._writer.has_begun

    async def begin_run(self, run_id: str, started: RunStarted | TaskOpened, also: Sequence[Event] = ()) -> int:
        """Record a new run, or task, and return its fence. With it, or not at all, what `also` says of it.

        Raises UsageError if the id is taken, AgentBlocked, or LedgerError.
        """
        return await self._writer.submit(BeginRun(run_id, [self._entry(event) for event in (started, *also)]))

    async def begin_call(
        self, called: TaskCalled, task_id: str, started: RunStarted, limits: CallLimits, runner_id: str
    ) -> int:
        """Record that a tool is called in a task, and the run that the call is, which that process drives.

        Returns the run's fence.

        What the limits say is counted in the same transaction, over all processes. Raises UnknownRun, TaskEnded,
        BudgetSpent, AgentBlocked, UsageError if the call's id is taken, or LedgerError.
        """
        job = BeginCall(task_id, self._entry(called), called.call, self._entry(started), limits, runner_id)
        return await self._writer.submit(job)

    async def close_task(self, task_id: str, closed: TaskClosed) -> bool:
        """Record that a task is closed; False where it was. Raises UnknownRun or LedgerError."""
        return bool(await self._writer.submit(CloseTask(task_id, self._entry(closed))))

    async def append(self, run_id: str, fence: int, events: Sequence[Event]) -> None:
        """Commit the events, all or none; they are on disk when this returns.

        Raises FenceLost, IllegalTransition, UnknownRun or LedgerError; then none of them is recorded. Only
        where PostgreSQL is lost during the commit, and stays away, is it left to the database.
        """
        await self._writer.submit(Append(run_id, fence, [self._entry(event) for event in events]))

    async def request(
        self, run_id: str, fence: int, wanted: PlacesWanted, prelude: Sequence[Event], intents: Sequence[LeaseRequested]
    ) -> Blocked | None:
        """As `append`, if the attempt may have its places now, by the line over all processes: None then.

        If not, it is in line from now on, where it was not, and `prelude` is recorded, with the event that it waits
        unless that is `known`. Raises as `append` does.
        """
        before, asked = ([self._entry(event) for event in part] for part in (prelude, intents))
        job = Request(run_id, fence, wanted, before, asked)
        await self._writer.submit(job)
        return job.blocked

    async def leave_line(self, run_id: str, step: str, attempt: int) -> None:
        """An attempt waits for places no longer. Raises LedgerError."""
        await self._writer.submit(LeaveLine(run_id, step, attempt))

    async def resume(self, run_id: str, resumed: RunResumed) -> int:
        """Make a run that was interrupted, or waits, run again, driven by `resumed.runner`; return its new fence.

        Of several who try one succeeds. Raises UnknownRun, AgentBlocked, FenceLost for the others, or LedgerError.
        """
        return await self._writer.submit(Resume(run_id, resumed.runner, self._entry(resumed)))

    async def take_over(self, run_id: str, *, ended: bool = False) -> int:
        """Return a new fence for the run; all earlier ones are lost. Raises UnknownRun or LedgerError.

        With `ended` a run that is running keeps its fence, and FenceLost is raised: somebody has resumed it.
        """
        return await self._writer.submit(TakeOver(run_id, ended))

    async def drop_values(self, run_id: str, dropped: ValuesDropped) -> bool:
        """Drop values of a run, or task, that has ended; False where it goes on. Raises UnknownRun or LedgerError."""
        return bool(await self._writer.submit(DropValues(run_id, self._entry(dropped))))

    async def overwrite_dropped(self) -> None:
        """Empty SQLite's write-ahead log, which holds what was dropped until it is written over. Raises LedgerError.

        Does nothing where somebody reads at that moment, and on PostgreSQL, whose vacuum does so.
        """
        if self._engine.dialect.name == "sqlite":
            await asyncio.to_thread(self._empty_log)

    def _empty_log(self) -> None:
        with self._reading() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")

    def rebuild(self, run_id: str) -> None:
        """Make the run's rows anew from its events. Raises UnknownRun, or LedgerError if its history is broken."""
        try:
            rebuild(self._engine, run_id)
        except SQLAlchemyError as error:
            raise ledger_error(error, self._label) from error

    def close(self) -> None:
        """Finish what was given to be written, then close all connections. May be called twice."""
        self._writer.close()
        self._engine.dispose()

    async def aclose(self) -> None:
        """As `close`, without holding up the event loop."""
        await asyncio.to_thread(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await asyncio.shield(self.aclose())

    def _entry(self, event: Event) -> Entry:
        return Entry.of(time_to_text(self._clock.now()), event)
