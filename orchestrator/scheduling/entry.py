"""One workflow as one scheduler knows it, and the steps from a fire that is due to its run."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

from orchestrator.errors import ExitCode, LedgerError, OrchestratorError, UsageError
from orchestrator.ledger.coordination.queue import NotAlone, QueuedRun
from orchestrator.ledger.coordination.schedules import ScheduleState, ScheduleStates
from orchestrator.ledger.states import RunState
from orchestrator.queue.lanes import limits_of
from orchestrator.runs.runner import Runner
from orchestrator.runs.triggers import SERVICE_TRIGGERS, TRIGGER_REQUEST, TRIGGER_SCHEDULE
from orchestrator.runs.types import RunRequest, Services
from orchestrator.scheduling.fires import Fire, requested
from orchestrator.scheduling.folder import KnownWorkflow
from orchestrator.scheduling.launcher import Launched, Launcher
from orchestrator.scheduling.overlap import QUEUE_LIMIT, Decision, Verdict, admit, due, next_due
from orchestrator.scheduling.queue.asking import queued
from orchestrator.scheduling.state import StateChange, change_state
from orchestrator.telemetry.metrics import Metrics
from orchestrator.workflow.inputs import bind_inputs

if TYPE_CHECKING:
    from orchestrator.queue.shared import SharedQueue

log = logging.getLogger(__name__)

_INSTANT = timedelta(microseconds=1)

_END_LOOK_SECONDS = 0.5
"""Between two looks whether runs at workers have ended that another one replaces."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerContext:
    """What every entry of a scheduler works with."""

    services: Services
    store: ScheduleStates
    launcher: Launcher
    metrics: Metrics
    shared: SharedQueue | None = None
    """Where what is due is put, for workers to carry out; None: it is run by this process."""


@dataclass(slots=True, eq=False)
class Entry:
    """A workflow with its memory: up to which nominal time (`seen`) its fires were decided.

    Only one task at a time may call `step`. `waiting` are the fires that were queued, oldest first.
    """

    context: SchedulerContext
    known: KnownWorkflow
    seen: datetime
    paused: bool = False
    waiting: deque[Fire] = field(default_factory=deque)
    running: dict[Launched, Fire] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The workflow's name."""
        return self.known.name

    def replace(self, known: KnownWorkflow, now: datetime) -> None:
        """Go on with another version of the workflow. Times of a new schedule count from now on only."""
        if known.schedule != self.known.schedule:
            self.seen = max(self.seen, now)
        self.known = known

    def next_due(self) -> datetime | None:
        """When `step` is next to be called for the schedule's sake; None: not for its sake."""
        schedule = self.known.schedule
        if schedule is None or self.paused:
            return None
        fire = next_due(schedule, self.name, after=self.seen)
        return fire.due if fire else None

    async def step(self) -> None:
        """Decide and do whatever is due now. Raises LedgerError; then it is to be called again later."""
        await self._start_waiting()
        if not self.paused:
            await self._scheduled()

    async def request(self, at: datetime) -> None:
        """Carry out what a person asked for at this moment, and strike the request out. Raises LedgerError."""
        fire = requested(self.name, at)
        if fire not in self.waiting and fire not in self.running.values():
            await self._decide(fire, caught_up=False)
        if fire not in self.waiting:
            await self._change(partial(_struck_out, at))

    async def _scheduled(self) -> None:
        schedule = self.known.schedule
        if schedule is None:
            return
        room = QUEUE_LIMIT - len(self.waiting)
        found = due(schedule, self.name, after=self.seen, now=self.context.services.clock.now(), room=room)
        if found.upto is None:
            return
        if found.missed is not None:
            self._skipped(Decision(found.missed, Verdict.SKIP, "missed"))
            self.seen = max(self.seen, found.missed.at)
        for number, fire in enumerate(found.fires):
            await self._decide(fire, caught_up=number < found.caught_up)
            self.seen = max(self.seen, fire.at)
        self.seen = max(self.seen, found.upto)
        await self._remember()

    async def _start_waiting(self) -> None:
        while self.waiting and not await self._going_on():
            fire = self.waiting[0]
            if not await self._start(fire):
                return
            self.waiting.popleft()
            if fire.trigger == TRIGGER_REQUEST:
                await self._change(partial(_struck_out, fire.at))
            await self._remember()

    async def _decide(self, fire: Fire, *, caught_up: bool) -> None:
        """Do what is to be done about a fire, and ask once more if another scheduler was faster."""
        decided = partial(admit, self.known.schedule, fire, waiting=len(self.waiting), caught_up=caught_up)
        if not await self._do(decided(running=await self._going_on())):
            await self._do(decided(running=1))

    async def _do(self, decision: Decision) -> bool:
        """False where a run was to start, and meanwhile one of another scheduler goes on."""
        fire = decision.fire
        match decision.verdict:
            case Verdict.START:
                return await self._start(fire)
            case Verdict.QUEUE:
                self.waiting.append(fire)
            case Verdict.SKIP:
                self._skipped(decision)
            case Verdict.REPLACE:
                await self._replace(fire)
        return True

    async def _replace(self, fire: Fire) -> None:
        """Cancel the scheduler's runs of this workflow and start when all they held is given back."""
        self.waiting.clear()
        ending = list(self.running)
        successor = await asyncio.to_thread(fire.occasion.run_id, self.context.services)
        for launched in ending:
            launched.cancel(ExitCode.TERMINATED, f"replaced by the run {successor}")
        await self.context.launcher.wait(ending)
        if self.context.shared is not None:
            await self._end_at_workers(self.context.shared, successor)
        if await self._going_on() or not await self._start(fire):
            self._skipped(Decision(fire, Verdict.SKIP, "overlap"))  # another process runs it

    async def _end_at_workers(self, shared: SharedQueue, successor: str) -> None:
        """Take out what no worker has begun, have the rest cancelled, and wait until all it held is given back.

        Another scheduler may have put the successor in already: that stays.
        """
        services = self.context.services
        for each in await self._put_in():
            if each.run_id != successor:
                await asyncio.to_thread(shared.remove, each.run_id)
        asked: set[str] = set()
        until = services.clock.monotonic() + services.grace + services.dead_after
        while services.clock.monotonic() < until:
            going_on = await self._running_of_schedulers() - {successor}
            if not going_on:
                return
            for run_id in going_on - asked:
                reason = f"replaced by the run {successor}"
                await asyncio.to_thread(services.heartbeat.store.request_cancel, run_id, reason)
            asked |= going_on
            await asyncio.sleep(_END_LOOK_SECONDS)

    async def _start(self, fire: Fire) -> bool:
        """Start the run of a fire, unless the ledger has it already. Raises LedgerError.

        False where it is to be alone, and another scheduler has put one into the queue meanwhile.
        """
        given = self.known.schedule.inputs if self.known.schedule else {}
        try:
            loaded = await asyncio.to_thread(self.known.load)
            bound = bind_inputs(loaded.workflow, given)
        except UsageError as error:  # only of a workflow that has no schedule: else it was checked
            log.error("%s cannot be run: %s", self.name, error.message)
            self._skipped(Decision(fire, Verdict.SKIP, "inputs"))
            return True
        services = self.context.services
        run_id: str | None = await asyncio.to_thread(fire.occasion.run_id, services)
        while run_id is not None:
            reason = self.known.schedule.reason if self.known.schedule else ""
            request = RunRequest(run_id=run_id, loaded=loaded, inputs=bound, trigger=fire.trigger, reason=reason)
            try:
                if await self._begun(fire, request):
                    return True
            except NotAlone:
                return False
            run_id = await asyncio.to_thread(fire.occasion.another_id, services, run_id)
        self._skipped(Decision(fire, Verdict.SKIP, "taken"))
        return True

    async def _begun(self, fire: Fire, request: RunRequest) -> bool:
        """Start the run and see it begin, or put it into the queue; False if its id is taken.

        Raises LedgerError, and NotAlone where it is to be alone and another one is in the queue by now.
        """
        if self.context.shared is not None:
            return await self._queued(self.context.shared, fire, request)
        launched = self.context.launcher.launch(Runner(self.context.services), request)
        self.running[launched] = fire
        launched.task.add_done_callback(lambda _: self.running.pop(launched))
        try:
            await asyncio.wait([launched.begun])
            launched.begun.result()
        except UsageError:
            return False
        except LedgerError:
            raise
        except OrchestratorError as error:
            log.error("%s cannot be run: %s", self.name, error.message)
            self._skipped(Decision(fire, Verdict.SKIP, "refused"))
        else:
            self._started(fire)
        return True

    async def _queued(self, shared: SharedQueue, fire: Fire, request: RunRequest) -> bool:
        """Put the run into the queue, once over all processes that come to its time; False if its id is taken."""
        services = self.context.services
        try:
            entry = queued(request, services.clock.now())
        except UsageError as error:
            log.error("%s cannot be queued: %s", self.name, error.message)
            self._skipped(Decision(fire, Verdict.SKIP, "inputs"))
            return True
        overlaps = self.known.schedule is not None and self.known.schedule.overlap == "allow"
        limits, alone = limits_of(request.loaded.workflow), () if overlaps else SERVICE_TRIGGERS
        put_in = partial(shared.add, entry, workflow=request.loaded.text, limits=limits, alone=alone)
        added = await asyncio.to_thread(put_in)
        if added:
            self._started(fire)
        return added or await asyncio.to_thread(services.queue.holds, request.run_id)

    def _started(self, fire: Fire) -> None:
        lag = (self.context.services.clock.now() - fire.due).total_seconds()
        self.context.metrics.started(self.name, max(0.0, lag))

    async def _going_on(self) -> int:
        """How many runs of this workflow go on that a scheduler started, here or in another process."""
        ours = {launched.run_id for launched in self.running}
        unended = partial(self.context.services.queue.unended, self.name, SERVICE_TRIGGERS)
        return len(ours | await asyncio.to_thread(unended))

    async def _running_of_schedulers(self) -> set[str]:
        reader = self.context.services.reader
        found = await asyncio.to_thread(partial(reader.runs, workflow=self.name, state=RunState.RUNNING, limit=100))
        return {run.run_id for run in found if run.trigger in SERVICE_TRIGGERS}

    async def _put_in(self) -> Sequence[QueuedRun]:
        """The runs that a scheduler has put into the queue and that no worker has begun."""
        if self.context.shared is None:
            return ()
        found = await asyncio.to_thread(self.context.services.queue.of, self.name)
        return [each for each in found if each.trigger in SERVICE_TRIGGERS]

    def _skipped(self, decision: Decision) -> None:
        self.context.metrics.skipped(self.name, decision.reason)
        at = decision.fire.at.isoformat()
        log.info("%s: the time %s is skipped: %s", self.name, at, decision.reason, extra={"workflow": self.name})

    async def _remember(self) -> None:
        """Keep what was decided. What waits counts as undecided: after a restart `catch_up` says what becomes of it."""
        scheduled = [fire.at for fire in self.waiting if fire.trigger == TRIGGER_SCHEDULE]
        handled = min([self.seen, *(at - _INSTANT for at in scheduled)])
        await self._change(lambda state: replace(state, handled=max(state.handled, handled)))

    async def _change(self, change: StateChange) -> None:
        await asyncio.to_thread(change_state, self.context.store, self.name, change, known_since=self.seen)


def _struck_out(at: datetime, state: ScheduleState) -> ScheduleState:
    return replace(state, requested=None) if state.requested == at else state
