"""Carries out one run: every step with its own credentials, and one record of how it all ended."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from orchestrator.errors import ExitCode, InvalidExpression, LedgerError, StepFailed
from orchestrator.ledger.events import Event, RunFinished, RunStarted, RunState, StepFinished, StepState
from orchestrator.ledger.lease import OPEN
from orchestrator.ledger.types import LeaseFilter, LeaseRecord
from orchestrator.planning.graph import dependencies
from orchestrator.runtime.attempt import AttemptResult, StepAttempt
from orchestrator.runtime.decisions import exit_code, retry_delay, run_state
from orchestrator.runtime.drive import Graph, drive
from orchestrator.runtime.types import Interruption, RunOutcome, RunProgress, RunRequest, Services
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
        workflow = request.loaded.workflow
        shown = public_inputs(workflow, request.inputs)
        for value in request.inputs.values():
            if isinstance(value, Secret):
                self.services.redactor.add(value)
        context = evaluate(workflow.context, {"inputs": shown, "run": {"id": request.run_id}})
        fence = await self.services.ledger.begin_run(
            request.run_id,
            RunStarted(
                workflow=workflow.name,
                digest=request.loaded.digest,
                agent=workflow.agent,
                trigger=request.trigger,
                inputs=shown,
                steps=tuple(workflow.steps),
            ),
        )
        progress = RunProgress(request=request, fence=fence, context=context, public_inputs=shown)
        return await self._finish(progress, *await self._walk(progress, interruption or Interruption()))

    async def _walk(
        self, progress: RunProgress, interruption: Interruption
    ) -> tuple[dict[str, StepState], tuple[RunState, ExitCode, str] | None]:
        """The states of the steps, and how the run ended if it was cut short."""
        workflow = progress.request.loaded.workflow
        graph = Graph(
            dependencies=dependencies(workflow),
            tolerant=frozenset(name for name, step in workflow.steps.items() if step.continue_on_error),
            on_failure=workflow.on_failure,
        )
        try:
            async with asyncio.timeout(workflow.timeout):
                states = await drive(
                    graph,
                    partial(self._step, progress),
                    partial(self._skip, progress),
                    parallel=self.services.max_parallel,
                )
        except TimeoutError:
            reason = f"the run took longer than its timeout of {workflow.timeout}s"
            return dict(progress.states), (RunState.FAILED, ExitCode.STEP_FAILED, reason)
        except asyncio.CancelledError:
            return dict(progress.states), (RunState.CANCELLED, interruption.exit_code, interruption.reason)
        except LedgerError as error:
            return dict(progress.states), (RunState.FAILED, error.exit_code, error.message)
        return states, None

    async def _finish(
        self,
        progress: RunProgress,
        states: dict[str, StepState],
        cut_short: tuple[RunState, ExitCode, str] | None,
    ) -> RunOutcome:
        tolerated = progress.request.loaded.workflow.steps
        counted = {step: error for step, error in progress.errors.items() if not tolerated[step].continue_on_error}
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
        number = 0
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
