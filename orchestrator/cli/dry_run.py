"""Asking the policy about a plan: the same questions as in a run, but without a time and before anything is issued."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from orchestrator.cli.display.plan_view import PlanView, StepView
from orchestrator.policy.admission import admission, before_evaluation
from orchestrator.policy.types import ConnectedEngine, Decision, PolicyEngine, PolicyRequest
from orchestrator.workflow.models.steps import When
from orchestrator.workflow.models.tools import Tool


class PlannedStep(Protocol):
    """What a plan says of a step. `request` has no time; its view says `partial` where parameters are not known yet."""

    @property
    def needs(self) -> Sequence[str]:
        """The steps that must have ended before this one starts."""
        ...

    @property
    def condition(self) -> str | None:
        """The expression of `if`, or None."""
        ...

    @property
    def timeout(self) -> int:
        """Seconds that one attempt may take."""
        ...

    @property
    def attempts(self) -> int:
        """How often it is tried at most."""
        ...

    @property
    def when(self) -> When:
        """Whether it runs on success, on failure, or always."""
        ...

    @property
    def for_each(self) -> str | int | None:
        """The expression that gives the items for each of which it is carried out, or how many are written out."""
        ...

    @property
    def max_parallel(self) -> int:
        """For how many items at once."""
        ...

    @property
    def tool(self) -> Tool | None:
        """The tool, where it is the call of one."""
        ...

    @property
    def request(self) -> PolicyRequest:
        """What the policy is asked, without a time."""
        ...


class Plan(Protocol):
    """A plan, in the order in which the steps may run."""

    @property
    def steps(self) -> Sequence[PlannedStep]:
        """At least one."""
        ...


async def decided(plan: Plan, engine: PolicyEngine, *, ask: bool = True) -> PlanView:
    """The plan together with what the policy says to every step now; without `ask` an engine that would have to ask
    a service is not asked, and none is about the tools of nobody. It is closed in the end."""
    first = plan.steps[0].request
    asked = bool(first.agent) and (ask or not isinstance(engine, ConnectedEngine))
    try:
        return PlanView(
            workflow=first.workflow,
            digest=first.workflow_digest,
            agent=first.agent,
            inputs=first.inputs,
            steps=[_step(step, await _decision(step, engine) if asked else None) for step in plan.steps],
        )
    finally:
        if isinstance(engine, ConnectedEngine):
            await engine.aclose()


async def _decision(step: PlannedStep, engine: PolicyEngine) -> Decision:
    request = step.request
    admitted = await admission(engine, before_evaluation(request, request.grants))
    return await engine.decide(request) if admitted is None or admitted.allow else admitted


def _step(step: PlannedStep, decision: Decision | None) -> StepView:
    request = step.request
    return StepView(
        step=request.step,
        action=request.action,
        does=request.action_view,
        partial=request.action_view.get("partial") is True,
        needs=step.needs,
        condition=step.condition,
        timeout=step.timeout,
        attempts=step.attempts,
        when=step.when,
        for_each=step.for_each,
        max_parallel=step.max_parallel,
        tool=step.tool,
        scopes=request.grants,
        decision=decision,
    )
