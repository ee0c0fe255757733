"""The loop of the scheduler: it wakes when something is due, and every second to see what has changed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from datetime import datetime
from functools import partial

from orchestrator.errors import LedgerError, UsageError
from orchestrator.jsontypes import counted
from orchestrator.scheduling.entry import Entry, SchedulerContext
from orchestrator.scheduling.folder import Catalogue, WorkflowFolder
from orchestrator.scheduling.state import remember_from

log = logging.getLogger(__name__)

TICK = 1.0
"""Seconds between two looks at the folder and at what people asked for; also the longest sleep."""

READING_SHARE = 1 / 500
LONGEST_PAUSE = 3.0
"""A large folder is looked through less often, so as to take no more than this share of the time; the pause between two
looks is so many seconds at most."""

RETRY = 2.0
"""Seconds; how long a workflow rests after the ledger did not answer."""


class Scheduler:
    """Schedules the workflows of a folder until it is stopped. Belongs to one event loop.

    Workflows are independent: each has at most one task that decides for it, so that one that waits
    (for a place, or for the run that it replaces) holds up no other.
    """

    def __init__(self, context: SchedulerContext, folder: WorkflowFolder) -> None:
        self._context = context
        self._folder = folder
        self._catalogue: Catalogue | None = None
        self._entries: dict[str, Entry] = {}
        self._due: dict[str, datetime | None] = {}
        self._busy: dict[str, asyncio.Task[None]] = {}
        self._resting: dict[str, float] = {}
        self._requests: dict[str, datetime] = {}
        self._soonest: datetime | None = None
        self._changed = True
        """Whether anything may be due before `_soonest`: a turn in which nothing is costs the same for any number."""
        self._wake = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None  # beside the loop: many changed files must not hold it up
        self.loaded = False
        """Whether the folder was read at least once."""
        self._last_turn = context.services.clock.monotonic()
        self._next_read = 0.0

    @property
    def entries(self) -> Mapping[str, Entry]:
        """The scheduled workflows by name."""
        return self._entries

    async def run(self) -> None:
        """Schedule until cancelled. Raises UsageError if the folder cannot be read at the start."""
        await self._reload()
        self.loaded = True
        if self._folder.path is not None:
            timed = sum(each.known.schedule is not None for each in self._entries.values())
            log.info("%s in %s, %d with a schedule", counted(len(self._entries), "workflow"), self._folder.path, timed)
        next_look = self._context.services.clock.monotonic()
        while True:
            clock = self._context.services.clock
            self._last_turn = clock.monotonic()
            if self._looking is not None and self._looking.done():
                self._looking.result()
                self._looking = None
            if self._looking is None and self._last_turn >= next_look:
                next_look = self._last_turn + TICK
                self._looking = asyncio.create_task(self._look(), name="look for changes")
            self._wake.clear()
            self._start_due(clock.now())
            await self._sleep()

    def silent_for(self) -> float:
        """Seconds since the loop last went round."""
        return self._context.services.clock.monotonic() - self._last_turn

    async def stop(self) -> None:
        """Start nothing more. Runs that have begun go on; those that wait for a place are given up."""
        self._context.launcher.drop_waiting()
        tasks = [*self._busy.values(), *([self._looking] if self._looking else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _look(self) -> None:
        for work in (self._reload, self._attend):
            try:
                await work()
            except (LedgerError, UsageError) as error:
                log.error("scheduling: %s", error.message)
                self._context.metrics.failed("scheduling")
            except Exception:  # counted and told, and tried again with the next look
                log.exception("looking for changes failed")
                self._context.metrics.failed("scheduling")

    async def _reload(self) -> None:
        clock = self._context.services.clock
        began = clock.monotonic()
        if self._catalogue is not None and began < self._next_read:
            return
        found = await asyncio.to_thread(self._folder.read)
        ended = clock.monotonic()
        self._next_read = ended + min((ended - began) / READING_SHARE, LONGEST_PAUSE)
        if found is self._catalogue:
            return
        self._context.metrics.loaded(len(found.workflows), found.invalid)
        for name in self._entries.keys() - found.workflows.keys():
            del self._entries[name]
            self._due.pop(name, None)
            self._resting.pop(name, None)
        fresh = [name for name in found.workflows if name not in self._entries]
        if fresh:
            known = {state.workflow: state for state in await asyncio.to_thread(self._context.store.all)}
            now = self._context.services.clock.now()
            for name in fresh:
                state = known.get(name)
                if state is None:
                    state = await asyncio.to_thread(remember_from, self._context.store, name, now)
                self._entries[name] = Entry(self._context, found.workflows[name], state.handled, state.paused)
                self._plan(name)
        self._catalogue = found
        for name, known_now in found.workflows.items():
            entry = self._entries[name]
            if entry.known is not known_now:
                entry.replace(known_now, self._context.services.clock.now())
                self._plan(name)

    async def _attend(self) -> None:
        """See who is paused, and which runs people asked for."""
        states = {state.workflow: state for state in await asyncio.to_thread(self._context.store.attention)}
        self._requests = {name: state.requested for name, state in states.items() if state.requested}
        for name, entry in self._entries.items():
            paused = name in states and states[name].paused
            if paused != entry.paused:
                entry.paused = paused
                if not paused:  # what passed meanwhile was not missed: it was not wanted
                    entry.seen = max(entry.seen, self._context.services.clock.now())
                self._plan(name)

    def _plan(self, name: str) -> None:
        self._due[name] = self._entries[name].next_due()
        self._changed = True

    def _start_due(self, now: datetime) -> None:
        if not (self._changed or self._requests or self._resting) and (self._soonest is None or now < self._soonest):
            return
        self._changed = True
        for name, entry in self._entries.items():
            at = self._due.get(name)
            wanted = name in self._requests or entry.waiting or (at is not None and at <= now)
            if wanted and name not in self._busy and self._rest(name) <= 0:
                self._resting.pop(name, None)
                task = asyncio.create_task(self._step(entry, self._requests.pop(name, None)), name=f"schedule {name}")
                self._busy[name] = task
                task.add_done_callback(partial(self._stepped, name))

    async def _step(self, entry: Entry, request: datetime | None) -> None:
        if request is not None:
            await entry.request(request)
        await entry.step()

    def _stepped(self, name: str, task: asyncio.Task[None]) -> None:
        self._busy.pop(name, None)
        entry = self._entries.get(name)
        if entry is None or task.cancelled():
            return
        now = self._context.services.clock.monotonic()
        if (error := task.exception()) is not None:
            self._context.metrics.failed("scheduling")
            self._resting[name] = now + RETRY
            expected = isinstance(error, LedgerError)
            log.error("%s: scheduling failed: %s", name, error, exc_info=None if expected else error)
        elif entry.waiting:
            self._resting[name] = now + TICK
        self._plan(name)
        self._wake.set()

    async def _sleep(self) -> None:
        if self._changed:
            idle = [at for name, at in self._due.items() if at and name not in self._busy and name not in self._resting]
            self._soonest = min(idle, default=None)
            self._changed = False
        now = self._context.services.clock.now()
        waits = [TICK] if self._soonest is None else [TICK, (self._soonest - now).total_seconds()]
        for name in self._resting.keys() - self._busy.keys():
            if at := self._due.get(name):
                waits.append(max((at - now).total_seconds(), self._rest(name)))
        try:
            # Not `wait_for`: in Python 3.11 it loses a cancellation that comes together with the wake.
            async with asyncio.timeout(max(0.001, min(waits))):
                await self._wake.wait()
        except TimeoutError:
            pass

    def _rest(self, name: str) -> float:
        """Seconds for which the workflow is left alone after a failure; never negative."""
        clock = self._context.services.clock
        return max(0.0, self._resting.get(name, 0.0) - clock.monotonic())
