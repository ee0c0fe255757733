"""Asking the policy about a plan: the same questions as in a run, but without a time and before anything is issued."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from orchestrator.cli.display.plan_view import PlanView, StepView
from orchestrator.policy.asking import decisions
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

    @property
    def items(self) -> Sequence[PolicyRequest]:
        """What it is asked for each item of a list that is known; empty where there is none."""
        ...

    @property
    def unasked(self) -> int:
        """How many items there are beyond these."""
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
            steps=[
                _step(step, await decisions(engine, step.request, step.items) if asked else ()) for step in plan.steps
            ],
        )
    finally:
        if isinstance(engine, ConnectedEngine):
            await engine.aclose()


def _step(step: PlannedStep, said: Sequence[Decision]) -> StepView:
    request = step.request
    return StepView(
        step=request.step,
        action=request.action,
        does=request.action_view,
        partial=step.unasked > 0 or any(each.action_view.get("partial") is True for each in step.items or (request,)),
        needs=step.needs,
        condition=step.condition,
        timeout=step.timeout,
        attempts=step.attempts,
        when=step.when,
        for_each=step.for_each,
        max_parallel=step.max_parallel,
        tool=step.tool,
        scopes=request.grants,
        decision=next((each for each in said if not each.allow), said[0] if said else None),
        items=said if len(said) == len(step.items) else (),
        unasked=step.unasked,
    )
