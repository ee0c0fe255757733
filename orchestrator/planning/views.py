"""What an action can say of its parameters before a run, when some of them are only known later."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from pydantic import BaseModel, ValidationError

from orchestrator.errors import InvalidExpression, StepFailed
from orchestrator.jsontypes import JsonObject
from orchestrator.workflow.loader import LoadedWorkflow
from orchestrator.workflow.models.steps import Step
from orchestrator.workflow.models.tools import HAND_OVER
from orchestrator.workflow.parameters import validated
from orchestrator.workflow.tools.urls import evaluate_parameter

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


class _Later(str):
    """Stands for a text that only the run will know."""

    __slots__ = ()


_LATER = _Later("(known at run time)")


def planned_view(
    loaded: LoadedWorkflow, catalog: Callable[[str], Any], step: Step, context: Mapping[str, Any]
) -> JsonObject:
    """What the action says of its parameters; without those that only the run will know, what can be said."""
    if step.action == HAND_OVER:
        return {"grant": str(step.with_["grant"])}
    action: ViewedAction = catalog(step.action)
    known: dict[str, Any] = {}
    in_part: dict[str, Any] = {}
    for name, value in step.with_.items():
        try:
            known[name] = evaluate_parameter(loaded.workflow.is_task, action.params, name, value, context)
        except InvalidExpression:
            in_part[name] = _as_far_as_known(loaded, action, name, value, context)
    if not in_part:
        return _said(loaded, action, known)
    unknown = {name for name, value in in_part.items() if value is _LATER}
    standing = {name: _standing_for(action.params, name) for name in unknown}
    view = _said(loaded, action, {**known, **in_part, **standing})
    if "partial" in view:  # what is known of a list or a map does not make one that means anything
        unknown = set(in_part)
        view = _said(loaded, action, {**known, **{name: _standing_for(action.params, name) for name in unknown}})
    # What stands for a parameter says nothing of it: an empty map is not "no arguments".
    return {**{name: said for name, said in view.items() if name not in unknown}, "partial": True}


def _said(loaded: LoadedWorkflow, action: ViewedAction, values: Mapping[str, Any]) -> JsonObject:
    """The view of these values, or a partial one where they are not valid or something is not on this machine."""
    try:
        return dict(action.view(validated(action.params, values, directory=loaded.directory)))
    except ValidationError:
        return UNKNOWN
    except StepFailed as error:
        return {**UNKNOWN, "unknown": error.message}


def _as_far_as_known(
    loaded: LoadedWorkflow, action: ViewedAction, name: str, value: Any, context: Mapping[str, Any]
) -> Any:
    """The value with `_LATER` in the place of each expression in it that only the run can evaluate."""
    if isinstance(value, Mapping):
        return {key: _as_far_as_known(loaded, action, name, item, context) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_far_as_known(loaded, action, name, item, context) for item in value]
    try:
        return evaluate_parameter(loaded.workflow.is_task, action.params, name, value, context)
    except InvalidExpression:
        return _LATER


def _standing_for(params: type[BaseModel], name: str) -> Any:
    """A value that the parameter's type accepts, as far as a simple one does."""
    from pydantic import TypeAdapter

    info = params.model_fields.get(name)
    candidates: tuple[Any, ...] = (_LATER, [], {}, 1)
    for candidate in candidates:
        try:
            if info is not None and info.annotation is not None:
                TypeAdapter[Any](info.annotation).validate_python(candidate)
        except ValidationError:
            continue
        return candidate
    return _LATER
