"""The runs of one scheduler: at most so many at once, each cancelled only through here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

from orchestrator.errors import Defect, ExitCode, OrchestratorError
from orchestrator.ledger.events import Event, RunFinished, RunStarted
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
    """Starts runs and knows those that have not ended. Belongs to one event loop."""

    def __init__(self, *, max_runs: int, redactor: Redactor) -> None:
        self._slots = asyncio.Semaphore(max_runs)
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
            async with self._slots:
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
