"""Carries out one run: every step with its own credentials, and one record of how it all ended."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from orchestrator.actions.hand_over import GIVEN_BACK
from orchestrator.errors import (
    DEFECT_HINT,
    Defect,
    ExitCode,
    InvalidExpression,
    LedgerError,
    OrchestratorError,
    Refused,
    RunExists,
    StepFailed,
)
from orchestrator.ledger.events import Event, RunFinished, RunStarted, StepFinished
from orchestrator.ledger.journal import Journal
from orchestrator.ledger.lease import OPEN
from orchestrator.ledger.states import RunState, StepState
from orchestrator.ledger.types import LeaseFilter, LeaseRecord, StepRecord
from orchestrator.planning.graph import dependencies
from orchestrator.redaction.forms import recognisable
from orchestrator.redaction.redactor import redact_exception
from orchestrator.runs.attempt import AttemptResult, Conclusion, StepAttempt
from orchestrator.runs.calls import on_record
from orchestrator.runs.enforcement.agreement import until_decided, withdraw
from orchestrator.runs.enforcement.preparation import prepare
from orchestrator.runs.engines.types import Walk
from orchestrator.runs.graph_walk import Graph
from orchestrator.runs.outcomes import Ending, ending, excessive_wish, missing_ends, retry_delay
from orchestrator.runs.types import Interruption, RunOutcome, RunProgress, RunRequest, Services, TakenRun
from orchestrator.secret import Secret
from orchestrator.uninterrupted import completed, is_cancelled, to_the_end
from orchestrator.workflow.expressions import holds
from orchestrator.workflow.inputs import public_inputs

log = logging.getLogger(__name__)

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
            not_looked_for=_not_looked_for(request),
            reason=request.reason,
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
        return await services.ledger.begin_run(request.run_id, started)

    async def resume(self, taken: TakenRun, interruption: Interruption | None = None) -> RunOutcome:
        """Go on with a run of another process: finished steps are not run again, their outputs come from the ledger."""
        progress = self._progress(taken.request)
        progress.begun(taken.fence)
        progress.leases.journal.in_doubt = True
        for record in taken.steps:
            progress.attempts[record.step] = record.attempts
            progress.asked_for_approval |= record.state is StepState.WAITING
            if record.state in (StepState.RUNNING, StepState.INTERRUPTED, StepState.WAITING):
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
        progress = RunProgress(request=request, leases=leases, context=context, public_inputs=shown)
        for value in request.inputs.values():
            if isinstance(value, Secret):
                self.services.redactor.add(value)
                progress.secrets.add(value)
        return progress

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
            walked = await self._walk(progress, interruption, cancel, cancelled=cancelled)
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
                    await self._complete(progress, record.step, StepState.FAILED, reason)

    def _defect(self, progress: RunProgress, error: BaseException) -> Ending:
        log.debug("run %s ended with a defect", progress.request.run_id, exc_info=error)
        defect = Defect(f"unexpected {redact_exception(error, self.services.redactor)}")
        progress.errors["(defect)"] = defect
        return RunState.FAILED, defect.exit_code, f"{defect.message}; {defect.hint}"

    async def _walk(
        self, progress: RunProgress, interruption: Interruption, cancel: Callable[[str], None], *, cancelled: bool
    ) -> tuple[dict[str, StepState], Ending | None]:
        """The states of the steps, and how the run ended if it was cut short."""
        workflow = progress.request.loaded.workflow
        graph = Graph(
            dependencies=dependencies(workflow),
            tolerant=frozenset(name for name, step in workflow.steps.items() if step.continue_on_error),
            on_failure=workflow.on_failure,
        )
        walk = Walk(
            run_id=progress.request.run_id,
            fence=progress.fence,
            cancel=cancel,
            graph=graph,
            call=partial(self._step, progress),
            skip=partial(self._skip, progress),
            parallel=self.services.max_parallel,
            already=dict(progress.states),
        )
        if workflow.timeout is not None:
            progress.deadline = self.services.clock.monotonic() + workflow.timeout
        try:
            async with asyncio.timeout(workflow.timeout) as limit:
                if cancelled:
                    await walk.abandon()
                    raise asyncio.CancelledError
                if (wrong := await self._prepare(progress)) is not None:
                    await walk.abandon()
                    return progress.states, (RunState.FAILED, wrong.exit_code, wrong.message)
                states = await self.services.engine.drive(walk)
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
        tolerated = progress.request.loaded.workflow.steps
        counted = {
            step: error
            for step, error in progress.errors.items()
            if step in tolerated and not tolerated[step].continue_on_error
        }
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
            outputs=progress.outputs,
            unconfirmed=unconfirmed,
        )
        if progress.asked_for_approval and state is not RunState.WAITING:
            await withdraw(self.services, progress.request.run_id)
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

    def _unconfirmed(self, run_id: str) -> tuple[LeaseRecord, ...]:
        try:
            return tuple(self.services.reader.leases(LeaseFilter(run=run_id, states=OPEN)))
        except LedgerError:
            return ()

    async def _step(self, progress: RunProgress, step_id: str) -> StepState:
        """One step, which ends whatever is raised in it. Raises CancelledError and LedgerError only."""
        failure: BaseException
        try:
            return await self._attempts(progress, step_id)
        except LedgerError:
            raise
        except asyncio.CancelledError as error:
            if is_cancelled():
                if step_id not in progress.states:
                    await to_the_end(self._complete(progress, step_id, StepState.CANCELLED, "cancelled"))
                raise
            failure = error  # raised by something that the step uses, and not meant for it
        except Exception as error:  # noqa: BLE001 -- the other steps and the run go on
            failure = error
        log.debug("step %s", step_id, exc_info=failure)
        reason = f"step `{step_id}`: unexpected {redact_exception(failure, self.services.redactor)}"
        state = await to_the_end(self._complete(progress, step_id, StepState.FAILED, reason))
        if state is StepState.FAILED and step_id not in progress.errors:
            progress.failed(step_id, StepFailed(reason, hint=DEFECT_HINT))
        return state

    async def _complete(self, progress: RunProgress, step_id: str, state: StepState, reason: str) -> StepState:
        """Record of a step that fell over what it still lacks, and say how it ended according to the ledger."""
        run_id = progress.request.run_id
        await progress.leases.journal.flush()
        recorded = await asyncio.to_thread(self.services.reader.events, run_id)
        if not (missing := missing_ends(recorded, step_id, state, reason)):
            return progress.states.get(step_id, state)
        progress.ended(step_id, state, None)
        await self._record(progress, *missing)
        return state

    async def _attempts(self, progress: RunProgress, step_id: str) -> StepState:
        number = progress.attempts.get(step_id, 0)
        admitted = False
        while True:
            number += 1
            delay: list[float] = []
            attempt = StepAttempt(
                self.services, progress, step_id, number, partial(self._conclude, progress, step_id, number, delay)
            )
            result = None
            if not admitted:
                result = await attempt.admission()
                admitted = result is None
                if admitted and (ended := await self._condition(progress, step_id)) is not None:
                    return ended
            result = result or await attempt.run()
            if result.state is StepState.WAITING:
                if self.services.parks:
                    return result.state
                await until_decided(self.services, result.approval)
                number -= 1
                continue
            if not delay:
                return result.state
            try:
                await asyncio.sleep(delay[0])
            except asyncio.CancelledError:
                await self._skip(progress, step_id, StepState.CANCELLED, "cancelled while waiting to try again")
                raise

    async def _condition(self, progress: RunProgress, step_id: str) -> StepState | None:
        """How the step ended by its `if`; None where it is to be carried out."""
        step = progress.request.loaded.workflow.steps[step_id]
        try:
            context = progress.expression_context(self.services.endpoints)
            if step.if_ is None or await asyncio.to_thread(holds, step.if_, context):
                return None
        except InvalidExpression as error:
            failed = StepFailed(f"step `{step_id}`: `if`: {error.message}", kind="condition", hint=error.hint)
            progress.failed(step_id, failed)
            await self._skip(progress, step_id, StepState.FAILED, failed.message)
            return StepState.FAILED
        await self._skip(progress, step_id, StepState.SKIPPED, f"its condition is false: {step.if_}")
        return StepState.SKIPPED

    def _conclude(
        self, progress: RunProgress, step_id: str, number: int, delay: list[float], result: AttemptResult
    ) -> Conclusion:
        """Decide whether this attempt was the last one; if so the step is finished with it."""
        step, clock, error = progress.request.loaded.workflow.steps[step_id], self.services.clock, result.error
        if error is not None:
            left = progress.deadline - clock.monotonic()
            seconds = retry_delay(step.retry, number, error, self.jitter(), left=left)
            if seconds is not None:
                delay.append(seconds)
                return Conclusion(retry_at=clock.now() + timedelta(seconds=seconds))
            if wish := excessive_wish(step.retry, number, error, left=left):
                error.message = f"{error.message}; {wish}"
            progress.failed(step_id, error)
        progress.ended(step_id, result.state, result.output)
        return Conclusion(
            (StepFinished(step=step_id, state=result.state, reason=result.reason, outputs=result.output),)
        )

    async def _skip(self, progress: RunProgress, step_id: str, state: StepState, reason: str) -> None:
        progress.ended(step_id, state, None)
        await to_the_end(self._record(progress, StepFinished(step=step_id, state=state, reason=reason)))

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
