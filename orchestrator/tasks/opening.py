"""Opening a task: a high-level request is checked, admitted by the policy, and put on record with all that it needs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from orchestrator.agents.authentication import Caller
from orchestrator.errors import PolicyDenied
from orchestrator.jsontypes import JsonObject, JsonValue
from orchestrator.ledger.ids import new_task_id
from orchestrator.ledger.reading.queries import TRIGGER_CALL
from orchestrator.ledger.task_events import TaskOpened
from orchestrator.planning.requests import policy_request, scopes_of
from orchestrator.policy.admission import admission, before_evaluation
from orchestrator.policy.types import TaskCall
from orchestrator.runs.types import Services
from orchestrator.tasks.opened import OpenedTask, caller_on_record
from orchestrator.workflow.expressions import evaluate
from orchestrator.workflow.inputs import bind_inputs
from orchestrator.workflow.loader import LoadedWorkflow


async def open_task(
    services: Services,
    loaded: LoadedWorkflow,
    caller: Caller,
    inputs: Mapping[str, JsonValue],
    *,
    reason: str = "",
    address: str = "",
) -> OpenedTask:
    """Open a task of this type. Vault is not asked for anything.

    Raises UsageError for inputs that are not right, PolicyDenied where the policy admits the agent to none of the
    tools, InvalidExpression where the context cannot be told, AgentBlocked, and LedgerError.
    """
    workflow = loaded.workflow
    bound = _without_secrets(bind_inputs(workflow, inputs))
    task_id, now = new_task_id(), services.clock.now()
    await _admitted(services, loaded, caller, task_id, bound, reason)
    context: dict[str, Any] = {}
    if workflow.context:
        known = {"inputs": bound, "workflow": loaded.variables}
        context = await asyncio.to_thread(evaluate, workflow.context, known, at="context")
    opened = OpenedTask(
        task_id=task_id,
        loaded=loaded,
        agent=caller.agent,
        inputs=bound,
        context=context,
        opened_at=now,
        deadline=now + timedelta(seconds=workflow.limits.duration),
        caller=caller_on_record(caller, address),
        reason=reason,
    )
    await asyncio.to_thread(services.heartbeat.store.keep_text, loaded.digest, loaded.text)
    await services.ledger.begin_run(
        task_id,
        TaskOpened(
            task=task_id,
            workflow=workflow.name,
            digest=loaded.digest,
            agent=caller.agent,
            inputs=bound,
            context=context,
            tools=tuple(workflow.tools),
            deadline=opened.deadline,
            idle=workflow.limits.idle,
            caller=opened.caller,
            reason=reason,
            directory=loaded.directory,
        ),
    )
    return opened


async def _admitted(
    services: Services, loaded: LoadedWorkflow, caller: Caller, task_id: str, inputs: JsonObject, reason: str
) -> None:
    """Raise PolicyDenied unless the policy lets anything of the file be evaluated for this agent."""
    reasons: dict[str, None] = {}
    for tool in loaded.workflow.tools:
        scopes = scopes_of(loaded.workflow, tool)
        request = policy_request(
            loaded,
            tool,
            run_id=task_id,
            trigger=TRIGGER_CALL,
            attempt=1,
            inputs=inputs,
            context={},
            action_view={},
            scopes=scopes,
            time=services.clock.now(),
            reason=reason,
            agent=caller.agent,
            call=TaskCall(task_id, {}, caller.on_behalf_of),
        )
        decision = await admission(services.policy, before_evaluation(request, scopes))
        if decision is None or decision.allow:
            return
        reasons |= dict.fromkeys(decision.reasons)
    raise PolicyDenied(
        f"the policy admits `{caller.agent}` to no tool of `{loaded.workflow.name}`: {'; '.join(reasons)}",
        hint="ask the owner of the policy; see `orchestrator plan FILE --agent NAME`",
        reasons=tuple(reasons),
    )


def _without_secrets(bound: Mapping[str, Any]) -> JsonObject:
    """A file with tools declares no secret inputs."""
    return dict(bound)
