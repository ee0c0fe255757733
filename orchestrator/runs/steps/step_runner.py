"""The steps of one run: each with its attempts, whatever is raised in them, and for each item of a list."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from orchestrator.errors import DEFECT_HINT, InvalidExpression, LedgerError, StepFailed
from orchestrator.ledger.events import Event, StepFinished
from orchestrator.ledger.states import StepState
from orchestrator.redaction.redactor import redact_exception
from orchestrator.runs.enforcement.agreement import until_decided
from orchestrator.runs.graph_walk import Graph, drive
from orchestrator.runs.outcomes import excessive_wish, missing_ends, retry_delay
from orchestrator.runs.steps.attempt import AttemptResult, Conclusion, StepAttempt
from orchestrator.runs.steps.items import items_of, together
from orchestrator.runs.types import RunProgress, Services
from orchestrator.step_names import instance_of
from orchestrator.uninterrupted import is_cancelled, to_the_end
from orchestrator.workflow.expressions import holds

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StepRunner:
    """Carries out the steps of one run. `jitter` gives numbers in [0, 1) for back-off."""

    services: Services
    progress: RunProgress
    jitter: Callable[[], float]

    async def carry_out(self, step_id: str) -> StepState:
        """One step, which ends whatever is raised in it. Raises CancelledError and LedgerError only."""
        failure: BaseException
        try:
            if step_id not in self.progress.items and self.progress.declared(step_id).for_each is not None:
                return await self._for_each(step_id)
            return await self._attempts(step_id)
        except LedgerError:
            raise
        except asyncio.CancelledError as error:
            if is_cancelled():
                if step_id not in self.progress.states:
                    await to_the_end(self.complete(step_id, StepState.CANCELLED, "cancelled"))
                raise
            failure = error  # raised by something that the step uses, and not meant for it
        except Exception as error:  # noqa: BLE001 -- the other steps and the run go on
            failure = error
        log.debug("step %s", step_id, exc_info=failure)
        reason = f"step `{step_id}`: unexpected {redact_exception(failure, self.services.redactor)}"
        state = await to_the_end(self.complete(step_id, StepState.FAILED, reason))
        if state is StepState.FAILED and step_id not in self.progress.errors:
            self.progress.failed(step_id, StepFailed(reason, hint=DEFECT_HINT))
        return state

    async def complete(self, step_id: str, state: StepState, reason: str) -> StepState:
        """Record of a step that fell over what it still lacks, and say how it ended according to the ledger."""
        run_id = self.progress.request.run_id
        await self.progress.leases.journal.flush()
        recorded = await asyncio.to_thread(self.services.reader.events, run_id)
        if not (missing := missing_ends(recorded, step_id, state, reason)):
            return self.progress.states.get(step_id, state)
        self.progress.ended(step_id, state, None)
        await self._record(*missing)
        return state

    async def _attempts(self, step_id: str) -> StepState:
        number = self.progress.attempts.get(step_id, 0)
        admitted = False
        while True:
            number += 1
            delay: list[float] = []
            attempt = StepAttempt(
                self.services, self.progress, step_id, number, partial(self._conclude, step_id, number, delay)
            )
            result = None
            if not admitted:
                result = await attempt.admission()
                admitted = result is None
                if admitted and (ended := await self._condition(step_id)) is not None:
                    return ended
            if result is None:
                async with self.progress.room:
                    result = await attempt.run()
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
                await self.skip(step_id, StepState.CANCELLED, "cancelled while waiting to try again")
                raise

    async def _for_each(self, step_id: str) -> StepState:
        """The step for each item of its list: a walk of its own, in which none waits for another."""
        attempt = StepAttempt(self.services, self.progress, step_id, 1, partial(self._conclude, step_id, 1, []))
        if (refused := await attempt.admission()) is not None:
            return refused.state
        if (ended := await self._condition(step_id)) is not None:
            return ended
        step = self.progress.declared(step_id)
        try:
            items = await items_of(step_id, step, self.progress.expression_context(self.services.endpoints))
        except StepFailed as failed:
            self.progress.failed(step_id, failed)
            await self.skip(step_id, StepState.FAILED, failed.message)
            return StepState.FAILED
        instances = [instance_of(step_id, index) for index in range(len(items))]
        self.progress.items.update(zip(instances, items, strict=True))
        goes_on = step.continue_on_error or self.progress.request.loaded.workflow.on_failure == "continue"
        found = await drive(
            Graph(dependencies=dict.fromkeys(instances, frozenset()), on_failure="continue" if goes_on else "cancel"),
            self.carry_out,
            self.skip,
            parallel=min(step.max_parallel, self.services.max_parallel),
            already={each: self.progress.states[each] for each in instances if each in self.progress.states},
        )
        states = {each: found[each] for each in instances}  # in the order of the list, whichever ended first
        if StepState.WAITING in states.values():
            return StepState.WAITING
        result = together(step_id, step, states, self.progress, limit_bytes=self.services.max_output_bytes)
        if result.error is not None:
            self.progress.failed(step_id, result.error)
        self.progress.forget(instances)
        self.progress.ended(step_id, result.state, result.output)
        finished = StepFinished(step=step_id, state=result.state, reason=result.reason, outputs=result.output)
        await to_the_end(self._record(finished))
        return result.state

    async def _condition(self, step_id: str) -> StepState | None:
        """How the step ended by its `if`; None where it is to be carried out. That of an item is that of its step."""
        if step_id in self.progress.items:
            return None
        step = self.progress.declared(step_id)
        try:
            context = self.progress.expression_context(self.services.endpoints)
            if step.if_ is None or await asyncio.to_thread(holds, step.if_, context):
                return None
        except InvalidExpression as error:
            failed = StepFailed(f"step `{step_id}`: `if`: {error.message}", kind="condition", hint=error.hint)
            self.progress.failed(step_id, failed)
            await self.skip(step_id, StepState.FAILED, failed.message)
            return StepState.FAILED
        await self.skip(step_id, StepState.SKIPPED, f"its condition is false: {step.if_}")
        return StepState.SKIPPED

    def _conclude(self, step_id: str, number: int, delay: list[float], result: AttemptResult) -> Conclusion:
        """Decide whether this attempt was the last one; if so the step is finished with it."""
        step, clock, error = self.progress.declared(step_id), self.services.clock, result.error
        if error is not None:
            left = self.progress.deadline - clock.monotonic()
            seconds = retry_delay(step.retry, number, error, self.jitter(), left=left)
            if seconds is not None:
                delay.append(seconds)
                return Conclusion(retry_at=clock.now() + timedelta(seconds=seconds))
            if wish := excessive_wish(step.retry, number, error, left=left):
                error.message = f"{error.message}; {wish}"
            self.progress.failed(step_id, error)
        self.progress.ended(step_id, result.state, result.output)
        return Conclusion(
            (StepFinished(step=step_id, state=result.state, reason=result.reason, outputs=result.output),)
        )

    async def skip(self, step_id: str, state: StepState, reason: str) -> None:
        """Record of a step that it will not run."""
        self.progress.ended(step_id, state, None)
        await to_the_end(self._record(StepFinished(step=step_id, state=state, reason=reason)))

    async def _record(self, *events: Event) -> None:
        await self.progress.leases.journal.append(*events)
