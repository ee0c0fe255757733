"""The parameters with which an action is carried out: evaluated, and checked by the action's own model."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from orchestrator.actions.base import Action, Params
from orchestrator.errors import InvalidExpression, StepFailed
from orchestrator.workflow.expressions import needs_engine
from orchestrator.workflow.models.steps import Step
from orchestrator.workflow.parameters import validated
from orchestrator.workflow.shape import message_of
from orchestrator.workflow.tools.urls import evaluate_parameter


async def parameters(
    action: Action, step_id: str, step: Step, context: Mapping[str, Any], *, of_tool: bool, directory: str
) -> Params:
    """Evaluate what the step says under `with`; `of_tool`: what an agent has chosen is kept in its place.

    Relative paths begin in the `directory`, or, where that is empty, where the orchestrator was started.

    Raises StepFailed, which shows no value.
    """

    def evaluated() -> dict[str, Any]:
        return {
            name: evaluate_parameter(of_tool, action.params, name, value, context) for name, value in step.with_.items()
        }

    try:
        found = await asyncio.to_thread(evaluated) if needs_engine(step.with_) else evaluated()
        return validated(action.params, found, directory=directory)
    except InvalidExpression as error:
        raise StepFailed(f"step `{step_id}`: {error.message}", kind="parameters", hint=error.hint) from error
    except ValidationError as error:
        problems = error.errors(include_url=False)
        wrong = "; ".join(f"`{_place(each['loc'])}`: {_told(each)}" for each in problems)
        raise StepFailed(
            f"step `{step_id}`: parameters of {step.action} are not valid: {wrong}",
            kind="parameters",
            hint="look at the expression that gives the value, and at what `orchestrator schema` says of the parameter",
        ) from None  # the cause holds the values


def _place(location: tuple[str | int, ...]) -> str:
    """Such as `with.command[1]`."""
    return "with" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)


def _told(problem: Any) -> str:
    value = problem.get("input")
    return message_of(problem, None if problem["type"] == "missing" else value, shown=False)
