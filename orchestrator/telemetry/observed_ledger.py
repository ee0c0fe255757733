"""A ledger whose events somebody watches: each is passed on once it is durable."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from orchestrator.clock import Clock
from orchestrator.ledger.events import Event, LeaseRequested, RunResumed, RunStarted, ValuesDropped
from orchestrator.ledger.places import Blocked, PlacesWanted
from orchestrator.ledger.task_events import TaskCalled, TaskClosed, TaskOpened
from orchestrator.ledger.types import CallLimits, LedgerWriter

log = logging.getLogger(__name__)

Observer = Callable[[str, datetime, Event], None]
"""Called with the run id, the time and the event, in the order in which the ledger has them."""


def both(first: Observer, second: Observer | None) -> Observer:
    """An observer that tells both."""
    if second is None:
        return first

    def observer(run_id: str, time: datetime, event: Event) -> None:
        first(run_id, time, event)
        second(run_id, time, event)

    return observer


def only(run: str, observer: Observer) -> Observer:
    """An observer that tells of one run, and not of others that this process recovers beside it."""

    def observe(run_id: str, time: datetime, event: Event) -> None:
        if run_id == run:
            observer(run_id, time, event)

    return observe


@dataclass(frozen=True, slots=True)
class ObservedLedger:
    """Writes through to a ledger and tells an observer what was committed."""

    ledger: LedgerWriter
    observer: Observer
    clock: Clock

    async def begin_run(self, run_id: str, started: RunStarted | TaskOpened, also: Sequence[Event] = ()) -> int:
        """As the ledger's; the observer is told of each event when all are committed."""
        fence = await self.ledger.begin_run(run_id, started, also)
        now = self.clock.now()
        for event in (started, *also):
            self._tell(run_id, now, event)
        return fence

    async def begin_call(
        self, called: TaskCalled, task_id: str, started: RunStarted, limits: CallLimits, runner_id: str
    ) -> int:
        """As the ledger's; the observer is told of both when they are committed."""
        fence = await self.ledger.begin_call(called, task_id, started, limits, runner_id)
        now = self.clock.now()
        self._tell(task_id, now, called)
        self._tell(called.call, now, started)
        return fence

    async def drop_values(self, run_id: str, dropped: ValuesDropped) -> bool:
        """As the ledger's; the observer is told if this dropped any."""
        done = await self.ledger.drop_values(run_id, dropped)
        if done:
            self._tell(run_id, self.clock.now(), dropped)
        return done

    async def overwrite_dropped(self) -> None:
        """As the ledger's."""
        await self.ledger.overwrite_dropped()

    async def close_task(self, task_id: str, closed: TaskClosed) -> bool:
        """As the ledger's; the observer is told if this closed it."""
        done = await self.ledger.close_task(task_id, closed)
        if done:
            self._tell(task_id, self.clock.now(), closed)
        return done

    async def resume(self, run_id: str, resumed: RunResumed) -> int:
        """As the ledger's; the observer is told when it is committed."""
        fence = await self.ledger.resume(run_id, resumed)
        self._tell(run_id, self.clock.now(), resumed)
        return fence

    async def take_over(self, run_id: str, *, ended: bool = False) -> int:
        """As the ledger's; nobody is told."""
        return await self.ledger.take_over(run_id, ended=ended)

    async def append(self, run_id: str, fence: int, events: Sequence[Event]) -> None:
        """As the ledger's; the observer is told of each event when all are committed, in their order."""
        await self.ledger.append(run_id, fence, events)
        now = self.clock.now()
        for event in events:
            self._tell(run_id, now, event)

    async def request(
        self, run_id: str, fence: int, wanted: PlacesWanted, prelude: Sequence[Event], intents: Sequence[LeaseRequested]
    ) -> Blocked | None:
        """As the ledger's; the observer is told of what was recorded."""
        blocked = await self.ledger.request(run_id, fence, wanted, prelude, intents)
        if blocked is None:
            recorded: tuple[Event, ...] = (*prelude, *intents)
        else:
            recorded = () if blocked.recorded is None else (*prelude, blocked.recorded)
        now = self.clock.now()
        for event in recorded:
            self._tell(run_id, now, event)
        return blocked

    async def leave_line(self, run_id: str, step: str, attempt: int) -> None:
        """As the ledger's; nobody is told."""
        await self.ledger.leave_line(run_id, step, attempt)

    async def aclose(self) -> None:
        """Close the ledger."""
        await self.ledger.aclose()

    def _tell(self, run_id: str, time: datetime, event: Event) -> None:
        """Watching never fails what is watched: the event is on record by now."""
        try:
            self.observer(run_id, time, event)
        except Exception:
            log.exception("%s of run %s could not be shown", event.kind, run_id, extra={"run": run_id})
