"""A step that is carried out for each item of a list: which items, and what it all came to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from orchestrator.errors import InvalidExpression, OrchestratorError, StepFailed
from orchestrator.jsontypes import JsonObject, JsonValue, counted
from orchestrator.ledger.states import StepState
from orchestrator.runs.outcomes import most_telling, state_after
from orchestrator.runs.steps.attempt import AttemptResult
from orchestrator.runs.types import RunProgress
from orchestrator.workflow.expressions import evaluate
from orchestrator.workflow.models.steps import ITEMS, MOST_ITEMS, Step


async def items_of(step_id: str, step: Step, context: Mapping[str, Any]) -> list[JsonValue]:
    """The items of `for_each`. Raises StepFailed, which shows no value."""
    try:
        found = await asyncio.to_thread(evaluate, step.for_each, context, at="for_each")
    except InvalidExpression as error:
        raise StepFailed(f"step `{step_id}`: {error.message}", kind="parameters", hint=error.hint) from error
    if not isinstance(found, list):
        raise StepFailed(
            f"step `{step_id}`: `for_each` is no list",
            kind="parameters",
            hint="let the expression give a list; of a map, `m.map(key, m[key])` gives one with its values",
        )
    if len(found) > MOST_ITEMS:
        raise StepFailed(
            f"step `{step_id}`: `for_each` has {len(found)} items, and may have {MOST_ITEMS}",
            kind="parameters",
            hint="let each item be a batch, or let SQL do the work for all rows in one statement",
        )
    return found


def together(
    step_id: str, step: Step, states: Mapping[str, StepState], progress: RunProgress, *, limit_bytes: int
) -> AttemptResult:
    """What a step has come to that ended so for its items, which are in the order of the list."""
    errors = {name: progress.errors[name] for name, state in states.items() if name in progress.errors}
    output: JsonObject | None = None
    if step.outputs:
        results = [progress.results.get(name, {}).get("output") or None for name in states]
        output = {ITEMS: results}
        if (size := len(json.dumps(output, ensure_ascii=False).encode())) > limit_bytes:
            too_large = StepFailed(
                f"step `{step_id}`: what is kept of its {counted(len(states), 'item')} has {size} bytes, and may have "
                f"{limit_bytes}",
                kind="output",
                hint="keep less in `outputs`, or write results to where the next step reads them",
            )
            errors, output = errors or {step_id: too_large}, None
    if errors:
        error = _of_all(step_id, errors, len(states))
        return AttemptResult(state_after(error), output, error)
    if StepState.CANCELLED in states.values():
        return AttemptResult(StepState.CANCELLED, output, note="some of its items were cancelled")
    return AttemptResult(StepState.SUCCEEDED, output)


def _of_all(step_id: str, errors: Mapping[str, OrchestratorError], number: int) -> OrchestratorError:
    """The error that decides how the step ended, saying how many items failed."""
    name = most_telling(errors)
    if name == step_id:
        return errors[name]
    error = errors[name]
    error.message = f"{len(errors)} of {counted(number, 'item')} of step `{step_id}` failed; `{name}`: {error.message}"
    error.args = (error.message,)
    return error
