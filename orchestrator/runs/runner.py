"""Carries out one run: every step with its own credentials, and one record of how it all ended."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from orchestrator.errors import (
    ExitCode,
    InvalidExpression,
    LedgerError,
    OrchestratorError,
    Refused,
    StepFailed,
    UsageError,
)
from orchestrator.ledger.events import Event, RunFinished, RunStarted, RunState, StepFinished, StepState
from orchestrator.ledger.lease import OPEN
from orchestrator.ledger.types import LeaseFilter, LeaseRecord, StepRecord
from orchestrator.planning.graph import dependencies
from orchestrator.runs.attempt import AttemptResult, StepAttempt
from orchestrator.runs.engines.types import Walk
from orchestrator.runs.graph_walk import Graph
from orchestrator.runs.outcomes import exit_code, retry_delay, run_state
from orchestrator.runs.types import Interruption, RunOutcome, RunProgress, RunRequest, Services, TakenRun
from orchestrator.secret import Secret
from orchestrator.workflow.expressions import evaluate, holds
from orchestrator.workflow.inputs import public_inputs


@dataclass(frozen=True, slots=True)
class Runner:
    """Runs workflows with the services of this process. `jitter` gives numbers in [0, 1) for back-off."""

    services: Services
    jitter: Callable[[], float] = random.random

    async def run(self, request: RunRequest, interruption: Interruption | None = None) -> RunOutcome:
        """Run to the end and say how it came out; a cancellation of this task is an ending like any other.

        Raises UsageError if the run id is taken, and LedgerError if not even the beginning can be recorded.
        """
        services, loaded = self.services, request.loaded
        progress = self._progress(request)
        begun = await asyncio.to_thread(
            services.heartbeat.begin, request.run_id, digest=loaded.digest, text=loaded.text
        )
        if not begun:
            raise UsageError(f"run {request.run_id} is in the ledger already", hint="Begin a run under a new id.")
        progress.fence = await services.ledger.begin_run(
            request.run_id,
            RunStarted(
                workflow=loaded.workflow.name,
                digest=loaded.digest,
                agent=loaded.workflow.agent,
                trigger=request.trigger,
                inputs=progress.public_inputs,
                steps=tuple(loaded.workflow.steps),
            ),
        )
        return await self._drive(progress, interruption or Interruption())

    async def resume(self, taken: TakenRun, interruption: Interruption | None = None) -> RunOutcome:
        """Go on with a run of another process: finished steps are not run again, their outputs come from the ledger."""
        progress = self._progress(taken.request)
        progress.fence = taken.fence
        for record in taken.steps:
            progress.attempts[record.step] = record.attempts
            if record.state in (StepState.RUNNING, StepState.INTERRUPTED):
                continue
            progress.ended(record.step, record.state, record.outputs if isinstance(record.outputs, dict) else None)
            if record.state in (StepState.FAILED, StepState.REFUSED):
                progress.failed(record.step, recorded_error(record))
        return await self._drive(progress, interruption or Interruption())

    def _progress(self, request: RunRequest) -> RunProgress:
        workflow = request.loaded.workflow
        shown = public_inputs(workflow, request.inputs)
        for value in request.inputs.values():
            if isinstance(value, Secret):
                self.services.redactor.add(value)
        context = evaluate(workflow.context, {"inputs": shown, "run": {"id": request.run_id}})
        return RunProgress(request=request, fence=0, context=context, public_inputs=shown)

    async def _drive(self, progress: RunProgress, interruption: Interruption) -> RunOutcome:
        task = asyncio.current_task()
        assert task is not None

        def cancel(reason: str) -> None:
            if interruption.reason != reason:
                interruption.exit_code, interruption.reason = ExitCode.INTERRUPTED, reason
                task.cancel()

        with self.services.heartbeat.watched(progress.request.run_id, cancel):
            return await self._finish(progress, *await self._walk(progress, interruption, cancel))

    async def _walk(
        self, progress: RunProgress, interruption: Interruption, cancel: Callable[[str], None]
    ) -> tuple[dict[str, StepState], tuple[RunState, ExitCode, str] | None]:
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
        try:
            async with asyncio.timeout(workflow.timeout):
                states = await self.services.engine.drive(walk)
        except TimeoutError:
            reason = f"the run took longer than its timeout of {workflow.timeout}s"
            return dict(progress.states), (RunState.FAILED, ExitCode.STEP_FAILED, reason)
        except asyncio.CancelledError:
            return dict(progress.states), (RunState.CANCELLED, interruption.exit_code, interruption.reason)
        except LedgerError as error:
            progress.errors["(ledger)"] = error
            return dict(progress.states), (RunState.FAILED, error.exit_code, error.message)
        return states, None

    async def _finish(
        self,
        progress: RunProgress,
        states: dict[str, StepState],
        cut_short: tuple[RunState, ExitCode, str] | None,
    ) -> RunOutcome:
        tolerated = progress.request.loaded.workflow.steps
        counted = {
            step: error
            for step, error in progress.errors.items()
            if step in tolerated and not tolerated[step].continue_on_error
        }
        unconfirmed = await asyncio.to_thread(self._unconfirmed, progress.request.run_id)
        if cut_short is not None:
            state, code, reason = cut_short
        else:
            state = run_state(states.values(), counted)
            code = exit_code(counted.values(), unconfirmed=bool(unconfirmed))
            reason = next((error.message for error in counted.values()), "")
        outcome = RunOutcome(
            run_id=progress.request.run_id,
            state=state,
            exit_code=code,
            reason=reason,
            steps=states,
            errors=progress.errors,
            unconfirmed=unconfirmed,
        )
        try:
            await self._record(progress, RunFinished(state=state, exit_code=int(code), reason=reason))
        except LedgerError as error:
            if cut_short is None:
                raise
            progress.errors.setdefault("(ledger)", error)
        return outcome

    def _unconfirmed(self, run_id: str) -> tuple[LeaseRecord, ...]:
        try:
            return tuple(self.services.reader.leases(LeaseFilter(run=run_id, states=OPEN)))
        except LedgerError:
            return ()

    async def _step(self, progress: RunProgress, step_id: str) -> StepState:
        """One step with all its attempts. Raises CancelledError and LedgerError only."""
        step = progress.request.loaded.workflow.steps[step_id]
        try:
            if step.if_ is not None and not holds(step.if_, progress.expression_context(self.services.endpoints)):
                await self._skip(progress, step_id, StepState.SKIPPED, f"its condition is false: {step.if_}")
                return StepState.SKIPPED
        except InvalidExpression as error:
            progress.failed(
                step_id, StepFailed(f"step `{step_id}`: {error.message}", kind="condition", hint=error.hint)
            )
            await self._skip(progress, step_id, StepState.FAILED, error.message)
            return StepState.FAILED
        number = progress.attempts.get(step_id, 0)
        while True:
            number += 1
            delay: list[float] = []
            attempt = StepAttempt(
                self.services, progress, step_id, number, partial(self._conclude, progress, step_id, number, delay)
            )
            result = await attempt.run()
            if not delay:
                return result.state
            try:
                await asyncio.sleep(delay[0])
            except asyncio.CancelledError:
                await self._skip(progress, step_id, StepState.CANCELLED, "cancelled while waiting to try again")
                raise

    def _conclude(
        self, progress: RunProgress, step_id: str, number: int, delay: list[float], result: AttemptResult
    ) -> tuple[Event, ...]:
        """Decide whether this attempt was the last one; if so the step is finished with it."""
        step = progress.request.loaded.workflow.steps[step_id]
        if result.error is not None:
            seconds = retry_delay(step.retry, number, result.error, self.jitter())
            if seconds is not None:
                delay.append(seconds)
                return ()
            progress.failed(step_id, result.error)
        progress.ended(step_id, result.state, result.output)
        reason = result.error.message if result.error else ""
        return (StepFinished(step=step_id, state=result.state, reason=reason, outputs=result.output),)

    async def _skip(self, progress: RunProgress, step_id: str, state: StepState, reason: str) -> None:
        progress.ended(step_id, state, None)
        await self._record(progress, StepFinished(step=step_id, state=state, reason=reason))

    async def _record(self, progress: RunProgress, *events: Event) -> None:
        await self.services.ledger.append(progress.request.run_id, progress.fence, events)


def recorded_error(record: StepRecord) -> OrchestratorError:
    """Why a step failed in an earlier process, as far as the ledger tells."""
    if record.state is StepState.REFUSED:
        return Refused(record.reason, by="orchestrator")
    return StepFailed(record.reason)
