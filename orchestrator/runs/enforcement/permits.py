"""Obeying a decision: what it demands is done, or the step gets nothing.

Everything here happens before a credential is asked for. What the orchestrator itself holds a step to afterwards is
the life of its credentials (`max_ttl`, in `orchestrator.credentials.opening`) and the rows that an action may return.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.actions.base import Params
from orchestrator.errors import PolicyDenied
from orchestrator.grants.narrowing import NarrowerColumns, narrow
from orchestrator.grants.privileges import Privilege, digest
from orchestrator.grants.scope import Scope
from orchestrator.jsontypes import counted
from orchestrator.policy.obligations import Obligations
from orchestrator.policy.types import Decision, PolicyRequest
from orchestrator.workflow.models.tools import HAND_OVER


@dataclass(frozen=True, slots=True)
class Permitted:
    """What a step may have after all: its credentials, and the parameters with which it acts."""

    scopes: tuple[Scope, ...]
    params: Params


def denied(decision: Decision, request: PolicyRequest) -> PolicyDenied:
    """The error with which a step ends that the policy says no to."""
    return PolicyDenied(
        f"step `{request.step_name}` was denied by policy ({decision.engine}): {'; '.join(decision.reasons)}",
        hint="narrow what the step asks for, or ask the owner of the policy; see `orchestrator plan`",
        reasons=decision.reasons,
    )


def permitted(decision: Decision, request: PolicyRequest, params: Params) -> Permitted:
    """What the decision leaves of the request. Raises PolicyDenied where it says no, or demands what cannot be."""
    if not decision.allow:
        raise denied(decision, request)
    demanded = decision.obligations
    if demanded.reason_required and not request.reason.strip():
        raise PolicyDenied(
            f"step `{request.step_name}`: the policy wants to know why the run was started",
            hint="say so: `orchestrator run --reason TEXT`, or `reason` of the schedule",
        )
    scopes = _narrowed(request, demanded)
    held = request.action != HAND_OVER  # what is handed over is held no longer than its credential may live
    if held and demanded.max_ttl is not None and scopes and demanded.max_ttl < request.timeout:
        raise PolicyDenied(
            f"step `{request.step_name}` may take {request.timeout}s, but the policy allows its credentials "
            f"to live {demanded.max_ttl}s at most",
            hint="shorten the step's timeout",
        )
    return Permitted(scopes, _held_to_rows(request, demanded, params))


def _held_to_rows(request: PolicyRequest, demanded: Obligations, params: Params) -> Params:
    if demanded.max_rows is None:
        return params
    held = params.held_to_rows(demanded.max_rows)
    if held is None:
        raise PolicyDenied(
            f"step `{request.step_name}`: the policy allows {counted(demanded.max_rows, 'row')} at most, and "
            f"the action `{request.action}` cannot be held to that",
            hint="read with `postgres.query`, or ask the owner of the policy",
        )
    return held


def _narrowed(request: PolicyRequest, demanded: Obligations) -> tuple[Scope, ...]:
    known = {scope.name for scope in request.grants}
    if unknown := sorted(set(demanded.columns) - known):
        raise PolicyDenied(
            f"step `{request.step_name}`: the policy narrows the grant `{unknown[0]}`, which the step does not have"
        )
    return tuple(
        _form(request.step_name, scope, demanded.columns[scope.name])
        if scope.name in demanded.columns
        else scope.narrowed(None)
        for scope in request.grants
    )


def _form(step: str, scope: Scope, columns: NarrowerColumns) -> Scope:
    """The form of the grant that has exactly what the policy leaves of it. Raises PolicyDenied where there is none."""
    where = f"step `{step}`: grant `{scope.name}`"
    try:
        left = narrow(scope.privileges, columns)
    except ValueError as error:
        raise PolicyDenied(f"{where}: the policy narrows its columns, which cannot be done: {error}") from error
    if left == scope.privileges:
        return scope.narrowed(None)
    wanted = digest(left)
    for form in scope.narrower:
        if digest(form.privileges) == wanted:
            return scope.narrowed(form)
    raise PolicyDenied(
        f"{where}: the policy leaves {_words(left, scope.privileges)} of it, and no such form is provisioned",
        hint="declare it under `narrower` of the grant, then `orchestrator provision apply`",
    )


def _words(left: Sequence[Privilege], before: Sequence[Privilege]) -> str:
    return "; ".join(f"`{each.describe()}`" for each in left if each not in before)
