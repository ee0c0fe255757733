"""Asking the policy about a plan: the same questions as in a run, but without a time and before anything is issued."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from orchestrator.cli.display.plan_view import PlanView, StepView
from orchestrator.policy.types import PolicyEngine, PolicyRequest


class PlannedStep(Protocol):
    """What a plan says of a step. `request` has no time; its view says `partial` where parameters are not known yet."""

    @property
    def needs(self) -> Sequence[str]: ...
    @property
    def condition(self) -> str | None: ...
    @property
    def timeout(self) -> int: ...
    @property
    def attempts(self) -> int: ...
    @property
    def request(self) -> PolicyRequest: ...


class Plan(Protocol):
    """A plan, in the order in which the steps may run."""

    @property
    def steps(self) -> Sequence[PlannedStep]: ...


async def decided(plan: Plan, engine: PolicyEngine) -> PlanView:
    """The plan together with what the policy says to every step now."""
    first = plan.steps[0].request
    return PlanView(
        workflow=first.workflow,
        digest=first.workflow_digest,
        agent=first.agent,
        inputs=first.inputs,
        steps=[await _step(step, engine) for step in plan.steps],
    )


async def _step(step: PlannedStep, engine: PolicyEngine) -> StepView:
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
        scopes=request.grants,
        decision=await engine.decide(request),
    )
