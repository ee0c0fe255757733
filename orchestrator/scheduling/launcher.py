"""The runs of one scheduler: at most so many at once, each cancelled only through here."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from orchestrator.errors import Defect, ExitCode, OrchestratorError
from orchestrator.ledger.events import AttemptFinished, AttemptWaits, Event, LeaseRequested, RunFinished, RunStarted
from orchestrator.ledger.states import RunState
from orchestrator.redaction.redactor import Redactor, redact_exception
from orchestrator.runs.runner import Runner
from orchestrator.runs.types import Interruption, RunOutcome, RunRequest, TakenRun

log = logging.getLogger(__name__)

SECRETS_KEPT = 64
"""Issued secrets that the redactor goes on knowing although every run that could hold them has ended."""


@dataclass(slots=True, eq=False)
class Launched:
    """A run on its way. `begun` is done when the ledger has its beginning, or with the error why it never will."""

    run_id: str
    workflow: str
    interruption: Interruption
    begun: asyncio.Future[None]
    issued_before: int
    """The redactor's position when it was launched: what it holds was added later."""
    placed: bool = False
    """It does not wait for a place any more: the ledger may have its beginning at any moment."""
    over: bool = False
    """The ledger has its end."""
    task: asyncio.Task[None] = field(init=False)
    cancelled: bool = False
    """It was told to end."""

    def cancel(self, code: ExitCode, reason: str) -> None:
        """End the run now; what it holds is revoked first. A second call changes nothing."""
        if self.task.done() or self.cancelled:
            return
        self.cancelled = True
        self.interruption.exit_code, self.interruption.reason = code, reason
        if self.placed and not self.begun.done():
            # Cut off between the two, the ledger would have a beginning without an end.
            self.begun.add_done_callback(lambda _: self.task.cancel())
        else:
            self.task.cancel()


class Launcher:
    """Starts runs and knows those that have not ended. Belongs to one event loop.

    At most `max_runs` go on at once. One that waits until others have given leases back takes nobody's place: what
    needs another database goes on beside it. When it has its leases it goes on at once, even if that is one too many,
    since what it holds others wait for.
    """

    def __init__(self, *, max_runs: int, redactor: Redactor) -> None:
        self._max_runs = max_runs
        self._placed: set[Launched] = set()
        self._queue: deque[asyncio.Future[None]] = deque()
        self._turns: set[asyncio.Future[None]] = set()
        """Turns that have come and are not taken yet."""
        self._waiting: dict[str, set[str]] = {}
        self.taken = 0
        """How many places are taken. This and the next two may be read from any thread."""
        self.waiting = 0
        """How many runs wait for leases of a connection of which as many are open as may be."""
        self.held_up: frozenset[str] = frozenset()
        """The workflows of these."""
        self._redactor = redactor
        self._launched: dict[str, Launched] = {}
        self.unconfirmed: set[str] = set()
        """The ids of leases whose end was not confirmed when their run ended."""
        self.unended: set[str] = set()
        """The runs whose task is over although the ledger has no end of them: somebody must record one."""

    @property
    def active(self) -> tuple[Launched, ...]:
        """The runs that have not ended, those included that wait for a place."""
        return tuple(self._launched.values())

    @property
    def room(self) -> int:
        """How many more runs may begin now; negative where it is too many already."""
        return self._max_runs - self.taken

    def launch(self, runner: Runner, request: RunRequest, taken: TakenRun | None = None) -> Launched:
        """Run as soon as there is a place, or go on with a run that was taken over. Raises nothing: see `Launched`."""
        loop = asyncio.get_running_loop()
        launched = Launched(
            request.run_id,
            request.loaded.workflow.name,
            Interruption(),
            loop.create_future(),
            self._redactor.position,
        )
        self._launched[request.run_id] = launched
        if taken is not None:
            launched.begun.set_result(None)
        work = self._carry_out(runner, request, launched, taken)
        launched.task = loop.create_task(work, name=f"run {request.run_id}")
        launched.task.add_done_callback(lambda _: self._ended(launched))
        return launched

    def observe(self, run_id: str, event: Event) -> None:
        """To be called with every event that the ledger has taken."""
        launched = self._launched.get(run_id)
        if isinstance(event, RunStarted) and launched is not None and not launched.begun.done():
            launched.begun.set_result(None)
        if isinstance(event, RunFinished):
            self.unended.discard(run_id)
            if launched is not None:
                launched.over = True
        if launched is not None:
            self._observe_waiting(run_id, event)

    def _observe_waiting(self, run_id: str, event: Event) -> None:
        """An attempt waits from its event on until its leases are asked for, or it has ended without them."""
        waiting = self._waiting.get(run_id, set())
        if isinstance(event, AttemptWaits):
            self._waiting[run_id] = waiting | {f"{event.step} {event.attempt}"}
            self._count()
            self._let_in()
        elif isinstance(event, LeaseRequested | AttemptFinished) and waiting:
            waiting.discard(f"{event.step} {event.attempt}")
            if not waiting:
                self._waiting.pop(run_id)
                self._count()

    def _count(self) -> None:
        waiting = [launched for launched in self._placed if launched.run_id in self._waiting]
        self.waiting, self.held_up = len(waiting), frozenset(launched.workflow for launched in waiting)
        self.taken = len(self._placed) - self.waiting + len(self._turns)

    async def wait(self, launched: Iterable[Launched], *, seconds: float | None = None) -> bool:
        """Wait for these runs to end; whether they have."""
        tasks = [one.task for one in launched if not one.task.done()]
        return not tasks or not (await asyncio.wait(tasks, timeout=seconds))[1]

    def drop_waiting(self) -> None:
        """Give up the runs that wait for a place: nothing of them was begun."""
        for launched in self.active:
            if not launched.placed:
                launched.cancel(ExitCode.TERMINATED, "the scheduler stops")

    async def _carry_out(self, runner: Runner, request: RunRequest, launched: Launched, taken: TakenRun | None) -> None:
        try:
            async with self._place(launched):
                launched.placed = True
                outcome = (
                    await runner.run(request, launched.interruption)
                    if taken is None
                    else await runner.resume(taken, launched.interruption)
                )
        except OrchestratorError as error:
            if not launched.begun.done():
                launched.begun.set_exception(error)
            else:
                log.error("run %s: %s", request.run_id, error.message, extra={"run": request.run_id})
            return
        except Exception as error:  # whoever waits for it is told, and its place is free again
            log.exception("run %s ended with a defect", request.run_id, extra={"run": request.run_id})
            if not launched.begun.done():
                launched.begun.set_exception(Defect(f"unexpected {redact_exception(error, self._redactor)}"))
            return
        self._conclude(outcome, launched.workflow)

    @asynccontextmanager
    async def _place(self, launched: Launched) -> AsyncIterator[None]:
        """While inside, the run has a place. Those that wait for one get theirs in the order in which they came."""
        if self._queue or self.room <= 0:
            turn = asyncio.get_running_loop().create_future()
            self._queue.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn in self._queue:
                    self._queue.remove(turn)
                self._turns.discard(turn)
                self._count()
                self._let_in()  # where the turn had come, it is the next one's
                raise
            self._turns.discard(turn)
        self._placed.add(launched)
        self._count()
        try:
            yield
        finally:
            self._placed.discard(launched)
            self._waiting.pop(launched.run_id, None)
            self._count()
            self._let_in()

    def _let_in(self) -> None:
        """Give the places that are free to those that wait, oldest first."""
        while self._queue and self.room > 0:
            turn = self._queue.popleft()
            if not turn.done():
                self._turns.add(turn)
                self._count()
                turn.set_result(None)

    def _conclude(self, outcome: RunOutcome, workflow: str) -> None:
        self.unconfirmed |= {lease.lease_id for lease in outcome.unconfirmed}
        if outcome.state is RunState.WAITING:
            log.info("run of %s %s", workflow, outcome.reason, extra={"run": outcome.run_id, "workflow": workflow})
        elif outcome.exit_code is not ExitCode.DONE:
            about = {"run": outcome.run_id, "workflow": workflow}
            log.warning("run of %s %s: %s", workflow, outcome.state.value, outcome.reason, extra=about)

    def _ended(self, launched: Launched) -> None:
        self._launched.pop(launched.run_id, None)
        oldest = min((one.issued_before for one in self.active), default=self._redactor.position)
        self._redactor.forget(until=oldest, keep=SECRETS_KEPT)
        if not launched.begun.done():
            if launched.cancelled:
                launched.begun.cancel()
            else:
                launched.begun.set_exception(Defect("the run's task was ended by nobody of ours"))
        if not launched.begun.cancelled() and launched.begun.exception() is None and not launched.over:
            self.unended.add(launched.run_id)
        if not launched.task.cancelled() and (fault := launched.task.exception()) is not None:
            log.error("run %s ended with a defect", launched.run_id, exc_info=fault, extra={"run": launched.run_id})
