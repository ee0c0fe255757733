"""One try at one step: decide, open the credentials, act, check the output, close.

The order is the product's promise: no decision, no credential; no record, no action; and whatever
happens in between, the credentials are closed before this module says how the attempt ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any

from orchestrator.actions.base import Action, Params, StepContext
from orchestrator.actions.confinement import parts_of
from orchestrator.actions.handover import Handover, Recipient
from orchestrator.actions.output import check_output, keep
from orchestrator.actions.process.confined import ConfinedParams
from orchestrator.credentials.broker import StepLeases
from orchestrator.credentials.types import Attempt
from orchestrator.errors import InvalidExpression, OrchestratorError, PolicyDenied, StepFailed
from orchestrator.grants.credential import Credential
from orchestrator.grants.policy_names import step_policy_name
from orchestrator.grants.scope import Scope
from orchestrator.jsontypes import JsonObject, JsonValue
from orchestrator.ledger.events import ApprovalRequested, AttemptFinished, AttemptStarted, Decided, Event, Notified
from orchestrator.ledger.ids import new_step_key
from orchestrator.ledger.states import StepState
from orchestrator.planning.requests import bind, is_bound
from orchestrator.policy.admission import admission
from orchestrator.policy.types import Decision, PolicyRequest, Question, input_digest
from orchestrator.redaction.redactor import redact_exception
from orchestrator.runs.enforcement.agreement import Asked, decided, unrecorded
from orchestrator.runs.enforcement.notices import Notices, all_delivered
from orchestrator.runs.enforcement.permits import denied, permitted
from orchestrator.runs.outcomes import state_after
from orchestrator.runs.steps.action_task import ActionTask
from orchestrator.runs.steps.parameters import parameters
from orchestrator.runs.types import RunProgress, Services
from orchestrator.step_names import declared_step
from orchestrator.uninterrupted import is_cancelled
from orchestrator.workflow.models.steps import Step
from orchestrator.workflow.models.tools import HAND_OVER


@dataclass(frozen=True, slots=True)
class AttemptResult:
    """How an attempt ended. `output` holds only the keys that the step's `outputs:` names."""

    state: StepState
    output: JsonObject | None = None
    error: OrchestratorError | None = None
    note: str = ""
    """What else there is to say of one that was cancelled."""
    approval: str = ""
    """What one waits for that has not begun."""

    @property
    def reason(self) -> str:
        """Why it did not succeed, as far as there is anything to say."""
        return self.error.message if self.error else self.note


@dataclass(frozen=True, slots=True)
class Conclusion:
    """What follows from a result: the events to record after `attempt.finished`, and when the step is tried again."""

    events: tuple[Event, ...] = ()
    retry_at: datetime | None = None


Conclude = Callable[[AttemptResult], Conclusion]


@dataclass(frozen=True, slots=True)
class StepAttempt:
    """Attempt `number` (from 1) at `step_id`. `conclude` may add events to the one that ends the attempt."""

    services: Services
    progress: RunProgress
    step_id: str
    number: int
    conclude: Conclude

    async def admission(self) -> AttemptResult | None:
        """None if the policy lets anything of the step be evaluated; else how it ended. Raises LedgerError."""
        started = self._started()
        try:
            request = self.progress.admission_request(self.step_id, self.number, self.services.clock.now())
            decision = await admission(self.services.policy, request)
            if decision is None or decision.allow:
                return None
            decided = self._decided(decision, request, Question.ADMIT)
        except OrchestratorError as error:
            return await self._end_early(error, started)
        except Exception as error:  # noqa: BLE001 -- a policy engine may raise anything
            return await self._end_early(self._unexpected(error), started)
        told = await self._tell(decision)
        return await self._end_early(denied(decision, request), started, decided, *told)

    async def run(self) -> AttemptResult:
        """Carry it out. Raises CancelledError after clean-up, and LedgerError where nothing can be recorded."""
        services = self.services
        deadline = services.clock.monotonic() + self._step.timeout
        started = self._started()
        try:
            action = services.action(self._step.action)
            params = await parameters(
                action,
                self.step_id,
                self._step,
                self._variables,
                of_tool=self.progress.request.call is not None,
                directory=self.progress.request.loaded.directory,
            )
            started = replace(started, confinement=self._confinement(params))
            scopes = await self._scopes()
            request = self._policy_request(action, params, scopes)
            asked = await decided(services, request, lambda decision: permitted(decision, request, params))
        except OrchestratorError as error:
            return await self._end_early(error, started)
        except Exception as error:  # noqa: BLE001 -- an action, a library or a policy engine may raise anything
            return await self._end_early(self._unexpected(error), started)
        request, decision = asked.request, asked.decision
        agreement: tuple[Event, ...] = ()
        if asked.standing is not None:
            self.progress.asked_for_approval = True
            agreement = await asyncio.to_thread(unrecorded, services.reader, asked.request, asked.standing)
        if asked.waits:
            return await self._wait(asked, self._decided(decision, request), agreement)
        prelude: tuple[Event, ...] = (*agreement, started, self._decided(decision, request))
        if decision.obligations.notify:  # on record before anybody is told
            await self._record(*prelude)
            prelude = ()
        told = await self._tell(decision)
        try:
            permit = permitted(decision, request, params)
            asked.check()
            all_delivered(told)
        except PolicyDenied as error:
            return await self._end_early(error, *prelude, *told)
        longest = self._longest(decision.obligations.max_ttl)
        if longest is not None and self._step.action == HAND_OVER:
            deadline = min(deadline, services.clock.monotonic() + longest)
        attempt = self._attempt(started.step_key, permit.scopes, longest, deadline)
        leases = services.broker.open(attempt, prelude=(*prelude, *told), run=self.progress.leases)
        return await self._act(leases, action, permit.params, deadline, started.confinement or ())

    async def _wait(self, asked: Asked, decided: Decided, agreement: Sequence[Event]) -> AttemptResult:
        """Leave the step without any credential until people have agreed. Nothing of the attempt has begun."""
        await self._record(decided, *agreement)
        if any(isinstance(event, ApprovalRequested) for event in agreement):  # nobody was told before
            await self._record(*await self._tell(asked.decision))
            if self.services.slack is not None and asked.standing is not None:
                await self.services.slack.announce(asked.standing.record)
        return AttemptResult(StepState.WAITING, approval=asked.approval_id)

    async def _tell(self, decision: Decision) -> tuple[Notified, ...]:
        request, services = self.progress.request, self.services
        workflow = request.loaded.workflow
        about = (request.run_id, workflow.name, workflow.agent, self.step_id, self.number)
        return await Notices(services.notifier, *about).tell(decision)

    def _started(self) -> AttemptStarted:
        return AttemptStarted(
            step=self.step_id,
            attempt=self.number,
            step_key=new_step_key(declared_step(self.step_id)),
            action=self._step.action,
            timeout=self._step.timeout,
        )

    async def _act(
        self, leases: StepLeases, action: Action, params: Params, deadline: float, confinement: tuple[str, ...]
    ) -> AttemptResult:
        opened = False
        expiring: list[OrchestratorError] = []
        at_work = ActionTask(self.services.redactor)
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout_at(deadline) as limit:
                    handover = Handover() if leases.replaceable else None
                    deliver = None if handover is None else handover.deliver
                    leases.watch(partial(_end_now, limit, expiring), self.progress.secrets.add, deliver)
                    credentials = await stack.enter_async_context(leases)
                    opened = True
                    if self._recipient is not None:
                        self._recipient.renewed_by(leases.renew, leases.ends)
                    context = self._context(credentials, deadline, handover, confinement)

                    async def work() -> AttemptResult:
                        return self._result(await action.run(params, context))

                    result = await at_work.run(work, name=f"action of {self.step_id}")
            except asyncio.CancelledError as error:
                if is_cancelled():
                    result = AttemptResult(StepState.CANCELLED, note=at_work.note)
                    await self._finish(leases, result, opened)
                    raise
                result = self._failed(self._unexpected(error))
            except OrchestratorError as error:
                result = self._failed(error)
            except Exception as error:  # noqa: BLE001 -- whatever an action raises, its step has failed
                if limit.expired() and isinstance(error, TimeoutError):
                    ended = expiring[0] if expiring else self._too_long(at_work.note, opened=opened)
                    result = self._failed(at_work.error or ended)
                else:
                    result = self._failed(self._unexpected(error))
            await self._finish(leases, result, opened)
        return result

    def _unexpected(self, error: BaseException) -> StepFailed:
        text = redact_exception(error, self.services.redactor)
        return StepFailed(text, kind="timeout" if isinstance(error, TimeoutError) else "error")

    def _too_long(self, note: str, *, opened: bool) -> StepFailed:
        what = "the action" if opened else "issuing the credentials"
        return StepFailed(
            f"{what} took longer than the step's timeout of {self._step.timeout}s" + (f"; {note}" if note else ""),
            kind="timeout",
            hint="raise `timeout` of the step, or find out what it waits for",
        )

    async def _finish(self, leases: StepLeases, result: AttemptResult, opened: bool) -> None:
        """While credentials are open the events go along with the beginning of their revocation."""
        events = self._ending(result)
        if opened:
            leases.epilogue = events
        else:
            await self._record(*leases.unrecorded, *events)

    async def _end_early(self, error: OrchestratorError, *events: Event) -> AttemptResult:
        result = self._failed(error)
        await self._record(*events, *self._ending(result))
        return result

    def _ending(self, result: AttemptResult) -> tuple[Event, ...]:
        conclusion = self.conclude(result)
        error = result.error
        finished = AttemptFinished(
            step=self.step_id,
            attempt=self.number,
            state=result.state,
            error_kind=getattr(error, "kind", type(error).__name__) if error else "",
            reason=result.reason,
            retry_at=conclusion.retry_at,
        )
        return (finished, *conclusion.events)

    def _failed(self, error: OrchestratorError) -> AttemptResult:
        """An error's text may quote what a service said: it is redacted before anybody sees it."""
        self.services.own_secrets.look_again()
        redact = self.services.redactor.redact
        error.message = redact(error.message)
        error.hint = redact(error.hint) if error.hint else None
        error.args = (error.message,)
        return AttemptResult(state_after(error), error=error)

    def _result(self, output: JsonValue) -> AttemptResult:
        self.services.own_secrets.look_again()
        checked = check_output(
            output,
            redactor=self.progress.secrets,
            own=self.services.own_secrets.redactor,
            limit_bytes=self.services.max_output_bytes,
        )
        return AttemptResult(StepState.SUCCEEDED, output=keep(checked, self._step.outputs))

    def _confinement(self, params: Params) -> tuple[str, ...] | None:
        """What a program is held to, decided before anything is issued. Raises StepFailed where that is too little."""
        if not isinstance(params, ConfinedParams):
            return None
        params.ports(self.services.endpoints)
        return parts_of(self.services.confinement)

    async def _scopes(self) -> tuple[Scope, ...]:
        scopes = self.progress.declared_scopes(self.step_id)
        if not is_bound(scopes):
            return scopes
        try:
            return await asyncio.to_thread(bind, scopes, self._variables)
        except InvalidExpression as error:
            raise StepFailed(f"step `{self.step_id}`: {error.message}", kind="parameters", hint=error.hint) from error

    def _policy_request(self, action: Action, params: Params, scopes: tuple[Scope, ...]) -> PolicyRequest:
        view = action.view(params)
        return self.progress.policy_request(self.step_id, self.number, view, scopes, self.services.clock.now())

    def _decided(self, decision: Decision, request: PolicyRequest, question: Question = Question.DECISION) -> Decided:
        document = request.as_json()
        return Decided(
            step=self.step_id,
            attempt=self.number,
            engine=decision.engine,
            revision=decision.revision,
            input_digest=input_digest(document),
            allow=decision.allow,
            reasons=decision.reasons,
            question=question.value,
            input=document,
            answer=decision.answer,
            obligations=decision.obligations.as_json(),
            decision_id=decision.decision_id,
        )

    def _longest(self, max_ttl: int | None) -> int | None:
        """Seconds that a credential may live at most: as the policy demands, and not beyond the task of a call."""
        call, now = self.progress.request.call, self.services.clock.now()
        left = [] if call is None else [max(1, int((call.until - now).total_seconds()))]
        return min([*left, *([] if max_ttl is None else [max_ttl])], default=None)

    def _attempt(self, step_key: str, scopes: tuple[Scope, ...], max_ttl: int | None, deadline: float) -> Attempt:
        workflow, request = self.progress.request.loaded.workflow, self.progress.request
        return Attempt(
            run_id=request.run_id,
            fence=self.progress.fence,
            workflow=workflow.name,
            step=self.step_id,
            number=self.number,
            agent=workflow.agent,
            step_key=step_key,
            scopes=tuple(_capped(scope, max_ttl) for scope in scopes),
            policy=step_policy_name(workflow.name, declared_step(self.step_id)),
            deadline=deadline,
            max_ttl=max_ttl,
            held_by_agent=self._step.action == HAND_OVER,
        )

    def _context(
        self,
        credentials: Mapping[str, Credential],
        deadline: float,
        handover: Handover | None,
        confinement: tuple[str, ...],
    ) -> StepContext:
        request = self.progress.request
        return StepContext(
            run_id=request.run_id,
            workflow=request.loaded.workflow.name,
            step=self.step_id,
            attempt=self.number,
            agent=request.loaded.workflow.agent,
            idempotency_key=request.idempotency_key(self.step_id),
            deadline=deadline,
            credentials=credentials,
            endpoints=self.services.endpoints,
            handover=handover,
            own=self.services.own_secrets.redactor,
            confinement=confinement,
            recipient=self._recipient,
            kept=tuple(self._step.outputs),
            printed=None if self.services.printed is None else partial(self.services.printed, self.step_id),
        )

    async def _record(self, *events: Event) -> None:
        await self.progress.leases.journal.append(*events)

    @property
    def _recipient(self) -> Recipient | None:
        call = self.progress.request.call
        return call.recipient if call else None

    @property
    def _step(self) -> Step:
        return self.progress.declared(self.step_id)

    @property
    def _variables(self) -> dict[str, Any]:
        return self.progress.expression_context(self.services.endpoints, self.step_id, self.number)


def _end_now(limit: asyncio.Timeout, expiring: list[OrchestratorError], error: OrchestratorError) -> None:
    """End the step although its time is not over: a credential of it is."""
    expiring.append(error)
    limit.reschedule(asyncio.get_running_loop().time())


def _capped(scope: Scope, max_ttl: int | None) -> Scope:
    return scope if max_ttl is None or scope.ttl <= max_ttl else replace(scope, ttl=max_ttl)
