"""The events of one run on their way into the ledger, with those that nobody waits for in the next commit.

What a step's end leaves to be told (its lease is gone) and what the next step begins with (its intents) are
committed together: deferred events go along with whatever is recorded next, before it, and by themselves where
nothing follows. So the order of a run's events is the order in which they were given, and nothing that was asked
for durably is durable before what was deferred.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from functools import partial
from typing import TypeVar

from orchestrator.errors import LedgerError
from orchestrator.ledger.events import Event, LeaseEvent, LeaseRequested
from orchestrator.ledger.lease import FINAL
from orchestrator.ledger.places import Blocked, PlacesWanted
from orchestrator.ledger.types import LedgerWriter

DEFER_SECONDS = 0.1
"""How long a deferred event waits for another one at most: longer than a database is asked in between."""

SOON_SECONDS = 0.002
"""The same for the end of a step: until a step that waits for it has begun, and hardly longer than a commit takes."""


T = TypeVar("T")


class Journal:
    """Writes the events of one run under one fence. Belongs to one event loop; `flush` it at the end."""

    def __init__(self, ledger: LedgerWriter, run_id: str, fence: int) -> None:
        self.run_id = run_id
        self.fence = fence
        self._ledger = ledger
        self._deferred: list[Event] = []
        self._timer: asyncio.TimerHandle | None = None
        self._writing: set[asyncio.Task[None]] = set()
        self._flushing: set[asyncio.Task[None]] = set()
        self._failed: BaseException | None = None
        self._open: set[str] = set()
        self.in_doubt = False
        """Whether more may be open than what was told here: something was not recorded, or the run began elsewhere."""

    @property
    def nothing_open(self) -> bool:
        """Whether every lease of the run is at its end, once what was deferred is on record."""
        return not self._open and not self.in_doubt

    @property
    def has_deferred(self) -> bool:
        """Whether anything goes along with what is recorded next."""
        return bool(self._deferred)

    async def append(self, *events: Event) -> None:
        """Commit what was deferred and then these; durable when it returns.

        Raises FenceLost, LedgerError or IllegalTransition; then none of these is recorded. So it does for deferred
        events that could not be committed in between, after it has tried them once more: they are not lost for it.
        """
        while self._flushing:  # whether that went well has to be known before anything may follow it
            await asyncio.wait(self._flushing)
        deferred = self._take()
        if self._failed is not None:
            failed, self._failed = self._failed, None
            await self._try_again(deferred)
            raise failed
        if not deferred and not events:
            return
        self._note(events)
        if deferred or self._writing:  # tasks begin in the order in which they were made, so nothing overtakes
            try:
                await asyncio.shield(self._start((*deferred, *events)))
            except LedgerError:
                self._deferred = [*deferred, *self._deferred]
                raise
        else:
            await self._certainly(self._ledger.append(self.run_id, self.fence, events))

    async def request(
        self, wanted: PlacesWanted, prelude: Sequence[Event], intents: Sequence[LeaseRequested]
    ) -> Blocked | None:
        """Commit what was deferred, then the prelude, and the intents if the attempt may have its places now.

        None then, else why not: it waits in line. Raises as `append` does.
        """
        await self.flush()
        asking = self._ledger.request(self.run_id, self.fence, wanted, prelude, intents)
        blocked = await self._certainly(asking)
        if blocked is None:
            self._note(intents)
        return blocked

    def defer(self, *events: Event, within: float = DEFER_SECONDS) -> None:
        """Have these committed with what comes next, or by themselves after so many seconds.

        What goes wrong is raised by the next call.
        """
        self._note(events)
        self._deferred += events
        loop = asyncio.get_running_loop()
        if self._timer is not None and self._timer.when() > loop.time() + within:
            self._timer.cancel()
            self._timer = None
        if self._deferred and self._timer is None:
            self._timer = loop.call_later(within, self._write_deferred)

    async def flush(self) -> None:
        """Wait until everything is durable. Raises like `append`."""
        while self._writing:
            await asyncio.wait(self._writing)
        await self.append()

    def _take(self) -> Sequence[Event]:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deferred, self._deferred = self._deferred, []
        return deferred

    def _write_deferred(self) -> None:
        self._timer = None
        if deferred := self._take():
            task = self._start(deferred)
            self._flushing.add(task)
            task.add_done_callback(partial(self._flushed, deferred))

    async def _try_again(self, deferred: Sequence[Event]) -> None:
        """Commit what could not be committed before, if the ledger is back."""
        if deferred:
            try:
                await asyncio.shield(self._start(deferred))
            except LedgerError:
                self._deferred = [*deferred, *self._deferred]

    def _start(self, events: Sequence[Event]) -> asyncio.Task[None]:
        writing = self._certainly(self._ledger.append(self.run_id, self.fence, events))
        task = asyncio.get_running_loop().create_task(writing)
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)
        return task

    async def _certainly(self, writing: Awaitable[T]) -> T:
        """Have it written; where that failed, or its outcome is not known, more may be open than is known here."""
        try:
            return await writing
        except BaseException:
            self.in_doubt = True
            raise

    def _note(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, LeaseEvent):
                (self._open.discard if event.to in FINAL else self._open.add)(event.lease_id)

    def _flushed(self, deferred: Sequence[Event], task: asyncio.Task[None]) -> None:
        self._flushing.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        self._failed = error
        if isinstance(error, LedgerError):
            self._deferred = [*deferred, *self._deferred]
