"""The question to the policy, built the same way for a plan and for a run."""

from __future__ import annotations

from datetime import datetime

from orchestrator.grants.scope import Scope, normalise
from orchestrator.jsontypes import JsonObject
from orchestrator.policy.types import PolicyRequest
from orchestrator.workflow.loader import LoadedWorkflow
from orchestrator.workflow.models import Step


def scopes_of(step: Step) -> tuple[Scope, ...]:
    """The normalised grants of a step, in declaration order."""
    return tuple(normalise(name, grant, step_timeout=step.timeout) for name, grant in step.grants.items())


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
    time: datetime | None,
) -> PolicyRequest:
    """The request for one attempt at a step. `inputs` are those that may be shown; `time` is None in a dry run."""
    workflow = loaded.workflow
    step = workflow.steps[step_id]
    return PolicyRequest(
        workflow=workflow.name,
        workflow_digest=loaded.digest,
        run=run_id,
        trigger=trigger,
        inputs=inputs,
        context=context,
        step=step_id,
        attempt=attempt,
        agent=workflow.agent,
        action=step.action,
        action_view=action_view,
        grants=scopes_of(step),
        time=time,
    )
