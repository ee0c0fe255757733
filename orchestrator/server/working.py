"""What a worker does beside carrying runs: it says how much room it has, and keeps what DBOS knows true."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

from orchestrator.errors import ExitCode, FenceLost, LedgerError, OrchestratorError
from orchestrator.ledger.coordination.queue import RunQueue
from orchestrator.ledger.location import locate
from orchestrator.ledger.states import RunState
from orchestrator.queue.executor import Executor, Room
from orchestrator.queue.lanes import Limits, limits_of
from orchestrator.queue.shared import SharedQueue
from orchestrator.queue.tables import Claimed
from orchestrator.recovery.waiting import cancel_waiting
from orchestrator.runs.recorded_workflow import recorded_workflow
from orchestrator.runs.types import Services
from orchestrator.scheduling.launcher import Launcher
from orchestrator.scheduling.queue.carrying import CANCELLED_THERE, Carrier, Offered
from orchestrator.server.maintenance import Maintenance
from orchestrator.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

SETTLE_SECONDS = 1.0
"""Between two looks at what DBOS says that workers have."""

HANDED_OUT_AGAIN = 5
"""How often a worker puts back what DBOS has handed to it and cannot start, such as a row that a part is missing of."""

TIDY_SECONDS = 60.0
"""Between two looks at what is over, and at what a version with another queue has left."""

SAMPLE_SECONDS = 15.0
"""Between two counts of the runs in the queue."""

PAUSE_SECONDS = 0.2
"""How long it is taken as known what is paused: for what is asked for, not for what begins."""


@dataclass(slots=True)
class WorkerRoom(Room):
    """The room of one worker. `stopped` says whether nothing new is to begin."""

    launcher: Launcher
    queue: RunQueue
    max_runs: int
    stopped: Callable[[], bool]
    active: Callable[[], frozenset[str]] = frozenset
    _paused: frozenset[str] = frozenset()
    _known_until: float = 0.0

    def left(self) -> int:
        """How many more runs may begin: what waits for leases of a busy connection takes no place."""
        if self.stopped() or "" in self.paused():
            return 0
        return self.max_runs - max(self.launcher.taken, len(self.active()) - self.launcher.waiting)

    def is_closed(self, workflow: str) -> bool:
        """Whether runs of the workflow wait here already for a connection: another one would only join them."""
        return workflow in self.launcher.held_up or workflow in self.paused()

    def paused(self) -> frozenset[str]:
        """The workflows of which no run begins; the empty name stands for all, also where it cannot be known."""
        now = time.monotonic()
        if now >= self._known_until:
            try:
                self._paused = frozenset(pause.workflow for pause in self.queue.pauses())
            except LedgerError:
                return frozenset({""})
            self._known_until = now + PAUSE_SECONDS
        return self._paused


@asynccontextmanager
async def working(
    services: Services,
    shared: SharedQueue,
    launcher: Launcher,
    *,
    ledger_url: str,
    max_runs: int,
    offered: Offered,
    stopped: Callable[[], bool],
    metrics: Metrics | None = None,
) -> AsyncIterator[Sequence[Maintenance]]:
    """Take runs out of the queue while the context is open. With it come the hooks that belong to it.

    Leave it when the runs have ended: what DBOS gave to this worker and it has not begun is given back.
    """
    room = WorkerRoom(launcher, services.queue, max_runs, stopped)
    await asyncio.to_thread(services.heartbeat.enter)  # whoever has runs must be seen to live
    await asyncio.to_thread(shared.prepare)
    carrier = Carrier(services, shared, launcher, offered)
    executor = Executor(locate(ledger_url), worker=services.heartbeat.runner_id, room=room, carry=carrier.carry)
    room.active = lambda: executor.active
    await executor.launch()
    settling = _Settling(services, shared, launcher, executor)
    try:
        yield [
            (SETTLE_SECONDS, settling.settle),
            (TIDY_SECONDS, _tidy(services, shared)),
            (SAMPLE_SECONDS, _queued_runs(services, shared, metrics or Metrics())),
        ]
    finally:
        await executor.aclose()
        await _give_back(services, shared)


@dataclass(slots=True)
class _Settling:
    """Holds what DBOS says that workers have against what there is.

    What is only on its way is seen as wrong for a moment, so nothing is done at the first sight of it.
    """

    services: Services
    shared: SharedQueue
    launcher: Launcher
    executor: Executor
    _strange: frozenset[tuple[str, str]] = field(default=frozenset())
    _times: Counter[str] = field(default_factory=Counter)
    """How often what this worker has and cannot even begin to carry was put back."""

    async def settle(self) -> None:
        """Hand out what is due, put back what a worker has that is not there any more, end here what DBOS cancelled."""
        await asyncio.to_thread(self.shared.enqueue_due)
        me = self.services.heartbeat.runner_id
        active = self.executor.active
        claimed = await asyncio.to_thread(self.shared.claimed)
        entered = {each.runner_id for each in await asyncio.to_thread(self.services.heartbeat.store.all)}
        mine = {each.run_id for each in claimed if each.worker == me}
        lost = [
            each
            for each in claimed
            if each.worker not in entered or (each.worker == me and not (each.is_run and each.run_id in active))
        ]
        strange = {("lost", each.run_id) for each in lost} | {("taken", run_id) for run_id in active - mine}
        again, self._strange = strange & self._strange, frozenset(strange)
        for each in lost:
            if ("lost", each.run_id) not in again:
                continue
            if not each.is_run or await self._is_hopeless(each):
                if await asyncio.to_thread(self.shared.drop, each):
                    log.error("%r in the queue is no run, and is cancelled: find out who put it there", each.run_id)
            elif await asyncio.to_thread(self.shared.put_back, each):
                log.warning("run %s is handed out again: nobody has it", each.run_id, extra={"run": each.run_id})
        taken = [launched for launched in self.launcher.active if ("taken", launched.run_id) in again]
        standing = await asyncio.to_thread(self.shared.standing, [launched.run_id for launched in taken])
        cancelled = {each.run_id for each in standing if each.status == "CANCELLED"}
        for launched in taken:
            if launched.run_id in cancelled:  # and is not only handed out once more, as by `resume` in DBOS
                launched.cancel(ExitCode.INTERRUPTED, CANCELLED_THERE)

    async def _is_hopeless(self, each: Claimed) -> bool:
        """Whether DBOS hands something to us again and again that it cannot start, and nothing of it has begun."""
        if each.worker == self.services.heartbeat.runner_id:
            self._times[each.run_id] += 1
        if self._times[each.run_id] <= HANDED_OUT_AGAIN:
            return False
        return await asyncio.to_thread(self.services.reader.run, each.run_id) is None


async def _give_back(services: Services, shared: SharedQueue) -> None:
    """Give back what this worker has and will not begin, as far as it can be done: others see that it is gone."""
    try:
        for each in await asyncio.to_thread(shared.claimed):
            if each.worker == services.heartbeat.runner_id:
                await asyncio.to_thread(shared.put_back if each.is_run else shared.drop, each)
    except LedgerError as error:
        log.warning("what this worker had not begun could not be given back: %s", error.message)


def _queued_runs(services: Services, shared: SharedQueue, metrics: Metrics) -> Callable[[], Awaitable[None]]:
    async def queued_runs() -> None:
        counts = await asyncio.to_thread(shared.counts)
        since = await asyncio.to_thread(shared.waits_since)
        waited = 0.0 if since is None else (services.clock.now() - since).total_seconds()
        metrics.queued({state.value: count for state, count in counts.items()}, max(0.0, waited))

    return queued_runs


async def _cancel(services: Services, run_id: str) -> None:
    """Have what was cancelled in DBOS not begin, nor go on when somebody has agreed. What runs its own worker ends."""
    record = await asyncio.to_thread(services.reader.run, run_id)
    if record is not None and record.state is RunState.WAITING:
        store = services.approvals.store
        try:
            await cancel_waiting(
                services.ledger, services.reader, store, run_id, CANCELLED_THERE, now=services.clock.now()
            )
        except FenceLost:  # it goes on by now
            return
    if record is None or record.state is not RunState.RUNNING:
        await asyncio.to_thread(services.queue.remove, [run_id])


def _tidy(services: Services, shared: SharedQueue) -> Callable[[], Awaitable[None]]:
    async def tidy() -> None:
        for run_id in await asyncio.to_thread(shared.cancelled):
            await _cancel(services, run_id)
        for queued in await asyncio.to_thread(shared.not_entered):
            try:
                loaded = recorded_workflow(services.heartbeat.store, queued.digest, queued.workflow)
                limits = limits_of(loaded.workflow)
            except LedgerError:
                raise
            except OrchestratorError:  # whoever takes it in hand says so
                limits = Limits()
            await asyncio.to_thread(partial(shared.enter, queued, limits=limits))
        await asyncio.to_thread(shared.tidy, services.clock.now())

    return tidy
