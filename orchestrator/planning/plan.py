"""What a run would do, step by step, as far as it can be known without any network.

The same workflow, inputs and endpoints give the same plan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import BaseModel, ValidationError

from orchestrator.errors import InvalidExpression, StepFailed
from orchestrator.grants.scope import Scope
from orchestrator.jsontypes import JsonObject, JsonValue
from orchestrator.planning.graph import dependencies, execution_order
from orchestrator.planning.requests import bind, policy_request, scopes_of
from orchestrator.planning.session_policies import UnsafeValue
from orchestrator.policy.types import PolicyRequest, TaskCall
from orchestrator.secret import Secret
from orchestrator.workflow.expressions import evaluate
from orchestrator.workflow.inputs import public_inputs
from orchestrator.workflow.loader import LoadedWorkflow
from orchestrator.workflow.models.steps import Step, When
from orchestrator.workflow.models.tools import HAND_OVER, Tool
from orchestrator.workflow.models.workflow import Workflow
from orchestrator.workflow.parameters import validated
from orchestrator.workflow.tools.urls import evaluate_parameter

PLANNED_RUN = "(planned)"
"""Stands where a run would have its id."""

UNKNOWN: JsonObject = {"partial": True}
"""The view of an action whose parameters are not all known before the run."""


class ViewedAction(Protocol):
    """What a plan needs of an action."""

    @property
    def params(self) -> type[BaseModel]:
        """The model of its parameters."""
        ...

    def view(self, params: Any) -> JsonObject:
        """What policies may see of valid parameters."""
        ...


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """One step of a plan. `request` is what the policy would be asked, without a time; durations are seconds."""

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
    context = evaluate(workflow.context, known)
    waits = dependencies(workflow)
    places = {step_id: place for place, step_id in enumerate(workflow.parts)}
    return Plan(
        tuple(
            PlannedStep(
                request=policy_request(
                    loaded,
                    step_id,
                    run_id=PLANNED_RUN,
                    trigger="plan",
                    attempt=1,
                    inputs=shown,
                    context=context,
                    action_view=_view(loaded, action, step, {**known, "inputs": dict(inputs), "context": context}),
                    scopes=_scopes(workflow, step_id, {**known, "context": context}),
                    time=None,
                    agent=agent,
                    call=TaskCall(PLANNED_RUN, {}) if workflow.is_task else None,
                ),
                needs=tuple(sorted(waits[step_id], key=places.__getitem__)),
                condition=step.if_,
                timeout=step.timeout,
                attempts=step.retry.attempts if step.retry else 1,
                when=step.when,
                for_each=len(step.for_each) if isinstance(step.for_each, list) else step.for_each,
                max_parallel=step.max_parallel,
                tool=workflow.tools.get(step_id),
            )
            for step_id in execution_order(waits)
            for step in [workflow.parts[step_id]]
        )
    )


def _scopes(workflow: Workflow, step_id: str, context: Mapping[str, Any]) -> tuple[Scope, ...]:
    scopes = scopes_of(workflow, step_id)
    try:
        return bind(scopes, context)
    except UnsafeValue:
        raise
    except InvalidExpression:
        return scopes


def _view(loaded: LoadedWorkflow, catalog: Callable[[str], Any], step: Step, context: Mapping[str, Any]) -> JsonObject:
    """What the action says of its parameters; without those that only the run will know, what can be said."""
    if step.action == HAND_OVER:
        return {"grant": str(step.with_["grant"])}
    action: ViewedAction = catalog(step.action)
    known: dict[str, Any] = {}
    complete = True
    for name, value in step.with_.items():
        try:
            known[name] = evaluate_parameter(loaded.workflow.is_task, action.params, name, value, context)
        except InvalidExpression:
            complete = False
    if not complete:
        missing = [name for name in step.with_ if name not in known]
        in_part = {name: _known_items(loaded, action, name, step.with_[name], context) for name in missing}
        if (view := _seen(action, {**known, **in_part}, loaded)) is not None:
            return {**view, "partial": True}
        known |= {name: _placeholder(action.params, name) for name in missing}
    try:
        view = dict(action.view(validated(action.params, known, directory=loaded.directory)))
    except ValidationError:
        return UNKNOWN
    except StepFailed as error:  # a program or a module that is not on this machine
        return {**UNKNOWN, "unknown": error.message}
    if complete:
        return view
    unknown = {name for name in step.with_ if isinstance(known.get(name), _Later)}
    return {**{name: value for name, value in view.items() if name not in unknown}, "partial": True}


def _seen(action: ViewedAction, values: Mapping[str, Any], loaded: LoadedWorkflow) -> JsonObject | None:
    """The view of lists of which some items are known, or None where that is not enough to say anything."""
    if not any(isinstance(value, list) and len(set(map(type, value))) > 1 for value in values.values()):
        return None
    try:
        return dict(action.view(validated(action.params, values, directory=loaded.directory)))
    except (ValidationError, StepFailed):
        return None


def _known_items(
    loaded: LoadedWorkflow, action: ViewedAction, name: str, value: Any, context: Mapping[str, Any]
) -> Any:
    """Of a list, such as the words of a command, what is known; something in the place of the others."""
    if not isinstance(value, list):
        return _placeholder(action.params, name)
    found: list[Any] = []
    for item in value:
        try:
            found += [evaluate_parameter(loaded.workflow.is_task, action.params, name, item, context)]
        except InvalidExpression:
            found.append(_Later("(known at run time)"))
    return found


class _Later(str):
    """Stands for a text that only the run will know."""

    __slots__ = ()


def _placeholder(params: type[BaseModel], name: str) -> Any:
    """A value that the parameter's type accepts, as far as a simple one does."""
    from pydantic import TypeAdapter

    info = params.model_fields.get(name)
    candidates: tuple[Any, ...] = (_Later("(known at run time)"), [], {}, 1)
    for candidate in candidates:
        try:
            if info is not None and info.annotation is not None:
                TypeAdapter[Any](info.annotation).validate_python(candidate)
        except ValidationError:
            continue
        return candidate
    return _Later("(known at run time)")
