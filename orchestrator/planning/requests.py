"""The question to the policy, built the same way for a plan and for a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from orchestrator.errors import InvalidExpression
from orchestrator.grants.certificate import checked_certificate
from orchestrator.grants.parameters import checked_parameters
from orchestrator.grants.privileges import Bound, bound_limits
from orchestrator.grants.scope import Scope, normalise
from orchestrator.jsontypes import JsonObject
from orchestrator.planning.session_policies import bound_policy, is_open
from orchestrator.policy.types import PolicyRequest, TaskCall
from orchestrator.workflow.expressions import evaluate
from orchestrator.workflow.loader import LoadedWorkflow
from orchestrator.workflow.models.workflow import Workflow


def scopes_of(workflow: Workflow, step_id: str) -> tuple[Scope, ...]:
    """The normalised grants of a step, in declaration order."""
    step = workflow.parts[step_id]
    return tuple(
        normalise(name, grant, step_timeout=step.timeout, place=f"{workflow.name}/{step_id}")
        for name, grant in step.grants.items()
    )


def bind(scopes: tuple[Scope, ...], context: Mapping[str, Any]) -> tuple[Scope, ...]:
    """The scopes with the values of their row limits, each as the text that the database compares with, and of the
    details and subjects of tokens, the parameters of what is asked with some, and session policies.

    Raises InvalidExpression where a value is not known, or is not one text, whole number, truth value or UUID.
    """
    return tuple(
        replace(
            scope,
            bindings=tuple(_binding(limit.value, context, scope.name) for _, limit in bound_limits(scope.privileges)),
            details=tuple(_detail(each, context, scope.name) for each in scope.details),
            parameters=_parameters(scope, context),
            policy=None if scope.policy is None else bound_policy(scope.policy, context, scope.name),
            subject=None if scope.subject is None else _subject(scope.subject, context, scope.name),
        )
        for scope in scopes
    )


def _binding(value: object, context: Mapping[str, Any], grant: str) -> str:
    assert isinstance(value, Bound)
    found = evaluate(value.expression, context, at=f"grants.{grant}: where")
    if isinstance(found, bool):
        return "true" if found else "false"
    if isinstance(found, str | int):
        return str(found)
    raise InvalidExpression(
        f"the row limit {value.expression} is {type(found).__name__}, not one text, whole number or truth value",
        hint="a row limit compares a column with one value that may be on record",
    )


def is_bound(scopes: Sequence[Scope]) -> bool:
    """Whether any of the scopes is only known when `bind` has evaluated it."""
    return any(
        scope.details or scope.subject or scope.parameters or is_open(scope.policy) or bound_limits(scope.privileges)
        for scope in scopes
    )


def _parameters(scope: Scope, context: Mapping[str, Any]) -> JsonObject | None:
    """What is sent to the path that issues a grant, or what its certificate is to say."""
    if scope.parameters is None:
        return None
    at = f"grants.{scope.name}" + ("" if scope.kind == "certificate" else ": parameters")
    found: dict[str, Any] = evaluate(dict(scope.parameters), context, at=at)
    try:
        return checked_certificate(found) if scope.kind == "certificate" else checked_parameters(found)
    except ValueError as error:
        raise InvalidExpression(f"{at}: {error}") from None


def _subject(declared: str, context: Mapping[str, Any], grant: str) -> str:
    """On whose behalf: one text without white space or control characters."""
    found = evaluate(declared, context, at=f"grants.{grant}: subject")
    if not isinstance(found, str) or not found or not found.isprintable() or " " in found:
        raise InvalidExpression(f"grants.{grant}: the `subject` is not one text without white space")
    return found


def _detail(declared: JsonObject, context: Mapping[str, Any], grant: str) -> JsonObject:
    """One piece of `authorization_details`; what it is for is a text (RFC 9396, section 2.2)."""
    found: dict[str, Any] = evaluate(dict(declared), context, at=f"grants.{grant}: details")
    if "identifier" in found:
        identifier = found["identifier"]
        if isinstance(identifier, bool) or not isinstance(identifier, str | int) or identifier == "":
            raise InvalidExpression(f"grants.{grant}: details: the `identifier` is not one text or whole number")
        found["identifier"] = str(identifier)
    return found


def policy_request(
    loaded: LoadedWorkflow,
    step_id: str,
    *,
    run_id: str,
    trigger: str,
    attempt: int,
    inputs: JsonObject,
    context: JsonObject,
    action_view: JsonObject,
    scopes: tuple[Scope, ...],
    time: datetime | None,
    reason: str = "",
    agent: str = "",
    call: TaskCall | None = None,
    index: int | None = None,
) -> PolicyRequest:
    """The request for one attempt at a step. `inputs` are those that may be shown; `time` is None in a dry run.

    `index` says for which item of its list, where it has one.

    The `agent` is that of the workflow, where it names one.
    """
    workflow = loaded.workflow
    step = workflow.parts[step_id]
    return PolicyRequest(
        workflow=workflow.name,
        workflow_digest=loaded.digest,
        run=run_id,
        trigger=trigger,
        inputs=inputs,
        context=context,
        step=step_id,
        attempt=attempt,
        agent=workflow.agent or agent,
        action=step.action,
        action_view=action_view,
        grants=scopes,
        timeout=step.timeout,
        reason=reason,
        time=time,
        call=call,
        index=index,
    )
