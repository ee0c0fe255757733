"""What a run would do, step by step, as far as it can be known without any network.

The same workflow, inputs and endpoints give the same plan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from orchestrator.errors import InvalidExpression
from orchestrator.grants.scope import Scope
from orchestrator.jsontypes import JsonValue
from orchestrator.planning.graph import dependencies, execution_order
from orchestrator.planning.requests import bind, policy_request, scopes_of
from orchestrator.planning.session_policies import UnsafeValue
from orchestrator.planning.views import planned_view
from orchestrator.policy.types import PolicyRequest, TaskCall
from orchestrator.secret import Secret
from orchestrator.workflow.expressions import evaluate
from orchestrator.workflow.inputs import public_inputs
from orchestrator.workflow.loader import LoadedWorkflow
from orchestrator.workflow.models.steps import Step, When
from orchestrator.workflow.models.tools import Tool
from orchestrator.workflow.models.workflow import Workflow

PLANNED_RUN = "(planned)"
"""Stands where a run would have its id."""

_MOST_ASKED = 50
"""Of how many items of a step a plan says what the policy would be asked; the others are counted."""


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """One step of a plan. `request` is what the policy would be asked, without a time; durations are seconds.

    Where it is carried out for each item of a list that is known already, `items` are the questions about these, in
    their order; `unasked` says how many items there are beyond them.
    """

    request: PolicyRequest
    needs: tuple[str, ...]
    condition: str | None
    timeout: int
    attempts: int
    when: When = "on_success"
    for_each: str | int | None = None
    """The expression that gives the items for each of which it is carried out, or how many are written out."""
    max_parallel: int = 1
    tool: Tool | None = None
    """What an agent chooses and how often, where it is the call of a tool."""
    items: tuple[PolicyRequest, ...] = ()
    unasked: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps in an order in which they may run, or the tools as they are declared."""

    steps: tuple[PlannedStep, ...]


def build(
    loaded: LoadedWorkflow,
    inputs: Mapping[str, JsonValue | Secret],
    *,
    action: Callable[[str], Any],
    endpoints: Mapping[str, str],
    agent: str = "",
) -> Plan:
    """The plan of a workflow with bound inputs. `action` gives an action (`ViewedAction`) by name.

    Of tools it is what a call of each would be, by the `agent`.
    """
    workflow = loaded.workflow
    shown = public_inputs(workflow, inputs)
    run = {"id": PLANNED_RUN, "trigger": "plan"}
    known = {"inputs": shown, "workflow": loaded.variables, "run": run, "endpoints": dict(endpoints)}
    known["context"] = evaluate(workflow.context, known)
    waits = dependencies(workflow)
    places = {step_id: place for place, step_id in enumerate(workflow.parts)}
    asked = partial(_request, loaded, inputs, known, action, agent)
    found = []
    for step_id in execution_order(waits):
        step = workflow.parts[step_id]
        items = _items(step, known)
        found.append(
            PlannedStep(
                request=asked(step_id, {"step": {"id": step_id, "attempt": 1}}),
                needs=tuple(sorted(waits[step_id], key=places.__getitem__)),
                condition=step.if_,
                timeout=step.timeout,
                attempts=step.retry.attempts if step.retry else 1,
                when=step.when,
                for_each=len(step.for_each) if isinstance(step.for_each, list) else step.for_each,
                max_parallel=step.max_parallel,
                tool=workflow.tools.get(step_id),
                items=tuple(
                    asked(step_id, {"step": {"id": step_id, "attempt": 1, "index": index}, **item}, index=index)
                    for index, item in enumerate(items[:_MOST_ASKED])
                ),
                unasked=len(items[_MOST_ASKED:]),
            )
        )
    return Plan(tuple(found))


def _request(
    loaded: LoadedWorkflow,
    inputs: Mapping[str, JsonValue | Secret],
    known: Mapping[str, Any],
    action: Callable[[str], Any],
    agent: str,
    step_id: str,
    own: Mapping[str, Any],
    *,
    index: int | None = None,
) -> PolicyRequest:
    """What the policy would be asked about a step, or about one item of it; `own` are the variables of that alone."""
    workflow = loaded.workflow
    variables = {**known, **own}
    return policy_request(
        loaded,
        step_id,
        run_id=PLANNED_RUN,
        trigger="plan",
        attempt=1,
        inputs=known["inputs"],
        context=known["context"],
        action_view=planned_view(loaded, action, workflow.parts[step_id], {**variables, "inputs": dict(inputs)}),
        scopes=_scopes(workflow, step_id, variables),
        time=None,
        agent=agent,
        call=TaskCall(PLANNED_RUN, {}) if workflow.is_task else None,
        index=index,
    )


def _items(step: Step, known: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each item of a list that is known, the variable `item`, or none where that one is only known at run time."""
    try:
        found = evaluate(step.for_each, known, at="for_each")
    except InvalidExpression:
        if not isinstance(step.for_each, list):
            return []
        first, others = step.for_each[:_MOST_ASKED], step.for_each[_MOST_ASKED:]
        return [*(_item(value, known) for value in first), *({} for _ in others)]
    return [{"item": value} for value in found] if isinstance(found, list) else []


def _item(value: Any, known: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return {"item": evaluate(value, known, at="for_each")}
    except InvalidExpression:
        return {}


def _scopes(workflow: Workflow, step_id: str, context: Mapping[str, Any]) -> tuple[Scope, ...]:
    scopes = scopes_of(workflow, step_id)
    try:
        return bind(scopes, context)
    except UnsafeValue:
        raise
    except InvalidExpression:
        return scopes
