"""Carries out one run: every step with its own credentials, and one record of how it all ended."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from orchestrator.actions.hand_over import GIVEN_BACK
from orchestrator.errors import (
    Defect,
    ExitCode,
    LedgerError,
    OrchestratorError,
    Refused,
    RunExists,
    StepFailed,
)
from orchestrator.ledger.events import Event, RunFinished, RunNotified, RunStarted
from orchestrator.ledger.journal import Journal
from orchestrator.ledger.lease import OPEN
from orchestrator.ledger.states import RunState, StepState
from orchestrator.ledger.storage.times import time_to_text
from orchestrator.ledger.types import LeaseFilter, LeaseRecord, StepRecord
from orchestrator.planning.graph import dependencies
from orchestrator.redaction.forms import recognisable
from orchestrator.redaction.redactor import redact_exception
from orchestrator.runs.calls import on_record
from orchestrator.runs.enforcement.agreement import withdraw
from orchestrator.runs.enforcement.notices import RunEnd, destinations, tell_of_end
from orchestrator.runs.enforcement.preparation import prepare
from orchestrator.runs.graph_walk import Graph, drive
from orchestrator.runs.outcomes import Ending, ending
from orchestrator.runs.steps.step_runner import StepRunner
from orchestrator.runs.types import Interruption, RunOutcome, RunProgress, RunRequest, Services, TakenRun
from orchestrator.secret import Secret
from orchestrator.step_names import declared_step
from orchestrator.uninterrupted import completed, is_cancelled
from orchestrator.workflow.inputs import public_inputs

log = logging.getLogger(__name__)

UNENDED = (StepState.RUNNING, StepState.INTERRUPTED, StepState.WAITING)
"""Of steps that are to be carried out when their run is gone on with."""

_BEFORE = "(before the first step)"
"""The name under which it is kept that no step can run."""


@dataclass(frozen=True, slots=True)
class Runner:
    """Runs workflows with the services of this process. `jitter` gives numbers in [0, 1) for back-off."""

    services: Services
    jitter: Callable[[], float] = random.random

    async def run(self, request: RunRequest, interruption: Interruption | None = None) -> RunOutcome:
        """Run to the end and say how it came out; a cancellation of this task is an ending like any other.

        Raises UsageError if the run id is taken, and LedgerError if not even the beginning can be recorded.
        """
        progress = self._progress(request)
        # Cut off in between, the ledger might have a beginning without an end.
        fence, cancelled = await completed(self._begin(progress))
        progress.begun(fence)
        progress.take_over(request.retry.taken)
        return await self._drive(progress, interruption or Interruption(), cancelled=cancelled is not None)

    async def _begin(self, progress: RunProgress) -> int:
        services, request, loaded = self.services, progress.request, progress.request.loaded
        started = RunStarted(
            workflow=loaded.workflow.name,
            digest=loaded.digest,
            agent=loaded.workflow.agent,
            trigger=request.trigger,
            inputs=progress.public_inputs,
            steps=tuple(loaded.workflow.steps),
            directory=loaded.directory,
            notify=destinations(loaded.workflow.notify),
            not_looked_for=_not_looked_for(request),
            reason=request.reason,
            retry_of=request.retry.of,
            original=request.retry.original,
            **on_record(request.call),
        )
        if (call := request.call) is not None:
            if not services.heartbeat.is_entered:
                await asyncio.to_thread(services.heartbeat.enter)
            called, runner_id = call.called(request.run_id), services.heartbeat.runner_id
            return await services.ledger.begin_call(called, call.task, started, call.limits, runner_id)
        begun = await asyncio.to_thread(
            services.heartbeat.begin, request.run_id, digest=loaded.digest, text=loaded.text
        )
        if not begun:
            raise RunExists(f"run {request.run_id} is in the ledger already", hint="Begin a run under a new id.")
        return await services.ledger.begin_run(request.run_id, started, request.retry.taken)

    async def resume(self, taken: TakenRun, interruption: Interruption | None = None) -> RunOutcome:
        """Go on with a run of another process: finished steps are not run again, their outputs come from the ledger."""
        progress = self._progress(taken.request)
        progress.begun(taken.fence)
        progress.leases.journal.in_doubt = True
        over = {each.step for each in taken.steps if each.state not in UNENDED}
        for record in taken.steps:
            if declared_step(record.step) in over and record.step not in progress.request.loaded.workflow.steps:
                continue  # for an item of a list, with which all is over
            progress.attempts[record.step] = record.attempts
            progress.asked_for_approval |= record.state is StepState.WAITING
            if record.state in UNENDED:
                continue
            progress.ended(record.step, record.state, record.outputs if isinstance(record.outputs, dict) else None)
            if record.state in (StepState.FAILED, StepState.REFUSED):
                progress.failed(record.step, recorded_error(record))
        return await self._drive(progress, interruption or Interruption())

    def _progress(self, request: RunRequest) -> RunProgress:
        workflow = request.loaded.workflow
        shown = public_inputs(workflow, request.inputs)
        leases = self.services.broker.of_run(Journal(self.services.ledger, request.run_id, fence=0))
        context = request.call.context if request.call else {}
        room = asyncio.Semaphore(self.services.max_parallel)
        progress = RunProgress(request=request, leases=leases, context=context, public_inputs=shown, room=room)
        for value in request.inputs.values():
            if isinstance(value, Secret):
                self.services.redactor.add(value)
                progress.secrets.add(value)
        return progress

    def _steps(self, progress: RunProgress) -> StepRunner:
        return StepRunner(self.services, progress, self.jitter)

    async def _prepare(self, progress: RunProgress) -> OrchestratorError | None:
        """What keeps every step from running, or None."""
        wrong = await prepare(self.services, progress)
        if wrong is not None:
            progress.errors[_BEFORE] = wrong
        return wrong

    async def _drive(self, progress: RunProgress, interruption: Interruption, *, cancelled: bool = False) -> RunOutcome:
        """Walk, and record how it ended. Nothing but the ledger keeps a run from having an end."""
        task = asyncio.current_task()
        assert task is not None

        call = progress.request.call

        def cancel(reason: str) -> None:
            if reason == GIVEN_BACK and call is not None and call.recipient is not None:
                call.recipient.give_back()
            elif interruption.reason != reason:
                interruption.exit_code, interruption.reason = ExitCode.INTERRUPTED, reason
                task.cancel()

        with self.services.heartbeat.watched(progress.request.run_id, cancel):
            walked = await self._walk(progress, interruption, cancelled=cancelled)
            outcome, _ = await completed(self._finish_whatever(progress, *walked))
            return outcome

    async def _finish_whatever(
        self, progress: RunProgress, states: dict[str, StepState], cut_short: Ending | None
    ) -> RunOutcome:
        try:
            if cut_short is not None:
                await self._complete_steps(progress, cut_short[2])
            return await self._finish(progress, states, cut_short)
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, LedgerError) or is_cancelled():
                raise
            # Tried once more, with words of our own only.
            return await self._finish(progress, states, self._defect(progress, error))

    async def _complete_steps(self, progress: RunProgress, reason: str) -> None:
        """Of the steps that were cut off in the middle too the ledger says that they are over, where it can."""
        with suppress(LedgerError):
            for record in await asyncio.to_thread(self.services.reader.steps, progress.request.run_id):
                if record.state in (StepState.RUNNING, StepState.WAITING):
                    await self._steps(progress).complete(record.step, StepState.FAILED, reason)

    def _defect(self, progress: RunProgress, error: BaseException) -> Ending:
        log.debug("run %s ended with a defect", progress.request.run_id, exc_info=error)
        defect = Defect(f"unexpected {redact_exception(error, self.services.redactor)}")
        progress.errors["(defect)"] = defect
        return RunState.FAILED, defect.exit_code, f"{defect.message}; {defect.hint}"

    async def _walk(
        self, progress: RunProgress, interruption: Interruption, *, cancelled: bool
    ) -> tuple[dict[str, StepState], Ending | None]:
        """The states of the steps, and how the run ended if it was cut short."""
        workflow = progress.request.loaded.workflow
        graph = Graph(
            dependencies=dependencies(workflow),
            tolerant=frozenset(name for name, step in workflow.steps.items() if step.continue_on_error),
            on_failure=workflow.on_failure,
            when={name: step.when for name, step in workflow.steps.items() if step.when != "on_success"},
        )
        steps = self._steps(progress)
        already = {step: state for step, state in progress.states.items() if step in workflow.steps}

        async def abandon() -> None:
            for step in graph.dependencies:
                if step not in already:
                    await steps.skip(step, StepState.CANCELLED, "the run was cancelled")

        if workflow.timeout is not None:
            progress.deadline = self.services.clock.monotonic() + workflow.timeout
        try:
            async with asyncio.timeout(workflow.timeout) as limit:
                if cancelled:
                    await abandon()
                    raise asyncio.CancelledError
                if "run.started" in progress.request.loaded.text:
                    progress.started = await asyncio.to_thread(self._began, progress.request.run_id)
                if (wrong := await self._prepare(progress)) is not None:
                    await abandon()
                    return progress.states, (RunState.FAILED, wrong.exit_code, wrong.message)
                states = await drive(
                    graph,
                    steps.carry_out,
                    steps.skip,
                    parallel=self.services.max_parallel,
                    already=already,
                    grace=self.services.grace,
                )
        except asyncio.CancelledError as error:
            if not is_cancelled():
                return progress.states, self._defect(progress, error)
            return progress.states, (RunState.CANCELLED, interruption.exit_code, interruption.reason)
        except LedgerError as error:
            progress.errors["(ledger)"] = error
            return progress.states, (RunState.FAILED, error.exit_code, error.message)
        except Exception as error:  # noqa: BLE001 -- a run has an end, whatever keeps it from going on
            if limit.expired() and isinstance(error, TimeoutError):
                reason = f"the run took longer than its timeout of {workflow.timeout}s"
                return progress.states, (RunState.FAILED, ExitCode.STEP_FAILED, reason)
            return progress.states, self._defect(progress, error)
        return {**states, **progress.states}, None

    async def _finish(
        self,
        progress: RunProgress,
        states: dict[str, StepState],
        cut_short: Ending | None,
    ) -> RunOutcome:
        declared = progress.request.loaded.workflow.steps
        of_steps = {step: error for step, error in progress.errors.items() if step in declared}
        tolerated = frozenset(step for step in of_steps if declared[step].continue_on_error)
        counted = {step: error for step, error in of_steps.items() if step not in tolerated}
        journal = progress.leases.journal
        try:
            await progress.leases.confirm()
            if not journal.nothing_open:
                await journal.flush()
        except LedgerError as error:
            progress.errors.setdefault("(ledger)", error)
            cut_short = cut_short or (RunState.FAILED, error.exit_code, error.message)
        unconfirmed: tuple[LeaseRecord, ...] = ()
        if not journal.nothing_open:
            unconfirmed = await asyncio.to_thread(self._unconfirmed, progress.request.run_id)
        state, code, reason = cut_short or ending(states, counted, unconfirmed=bool(unconfirmed))
        outcome = RunOutcome(
            run_id=progress.request.run_id,
            state=state,
            exit_code=code,
            reason=reason,
            steps=states,
            errors=progress.errors,
            tolerated=tolerated,
            outputs=progress.outputs,
            unconfirmed=unconfirmed,
        )
        if progress.asked_for_approval and state is not RunState.WAITING:
            await withdraw(self.services, progress.request.run_id)
        if state is not RunState.WAITING and not progress.told:
            progress.told = True
            with suppress(LedgerError):  # which whatever is recorded next meets, too
                await self._record(progress, *await self._tell(progress, outcome))
        also_ends = journal.has_deferred
        try:
            await self._record(progress, RunFinished(state=state, exit_code=int(code), reason=reason))
        except LedgerError as error:
            if cut_short is None and not also_ends:
                raise
            progress.errors.setdefault("(ledger)", error)
            if cut_short is None:  # that its leases are gone is not on record either
                return await self._finish(progress, states, (RunState.FAILED, error.exit_code, error.message))
        return outcome

    async def _tell(self, progress: RunProgress, outcome: RunOutcome) -> tuple[RunNotified, ...]:
        """Tell those of its end whom the workflow names."""
        request, workflow = progress.request, progress.request.loaded.workflow
        end = RunEnd(
            run_id=request.run_id,
            workflow=workflow.name,
            agent=workflow.agent,
            trigger=request.trigger,
            state=outcome.state,
            exit_code=int(outcome.exit_code),
            reason=outcome.reason,
            failed=progress.failures,
        )
        return await tell_of_end(self.services.notifier, workflow.notify, end)

    def _began(self, run_id: str) -> str:
        """When, as the ledger has it: the same for whoever goes on with the run."""
        record = self.services.reader.run(run_id)
        return "" if record is None else time_to_text(record.started_at)

    def _unconfirmed(self, run_id: str) -> tuple[LeaseRecord, ...]:
        try:
            return tuple(self.services.reader.leases(LeaseFilter(run=run_id, states=OPEN)))
        except LedgerError:
            return ()

    async def _record(self, progress: RunProgress, *events: Event) -> None:
        await progress.leases.journal.append(*events)


def recorded_error(record: StepRecord) -> OrchestratorError:
    """Why a step failed in an earlier process, as far as the ledger tells."""
    if record.state is StepState.REFUSED:
        return Refused(record.reason, by="orchestrator")
    return StepFailed(record.reason)


def _not_looked_for(request: RunRequest) -> tuple[str, ...]:
    secret = {name: value for name, value in request.inputs.items() if isinstance(value, Secret)}
    return tuple(name for name, value in secret.items() if not recognisable(value.reveal()))
