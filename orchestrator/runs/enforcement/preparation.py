"""Before the first step of a run: that all of them have what they name, and the run's context."""

from __future__ import annotations

import asyncio
from functools import partial

from orchestrator.errors import InvalidExpression, OrchestratorError
from orchestrator.planning.readiness import any_may_run, certainly_false, lacking
from orchestrator.runs.enforcement.admission import any_admitted
from orchestrator.runs.types import RunProgress, Services
from orchestrator.workflow.expressions import evaluate
from orchestrator.workflow.problems import InvalidWorkflow


async def prepare(services: Services, progress: RunProgress) -> OrchestratorError | None:
    """What keeps every step from running, or None; `progress` has the context then.

    Nothing of the workflow is evaluated where the policy admits none of its steps: each of them will say so.
    """
    loaded, endpoints, inputs = progress.request.loaded, services.endpoints, progress.public_inputs
    destinations = services.notifier.destinations
    lacks = partial(lacking, loaded, endpoints, ended=progress.states, destinations=destinations)
    context = loaded.workflow.context
    if not (context or lacks(never=any_may_run)) or not await any_admitted(services, progress):
        return None
    try:
        if problems := await asyncio.to_thread(lacks, never=certainly_false(inputs, endpoints)):
            return InvalidWorkflow(problems)
        if context:
            request = progress.request
            run = {"id": request.run_id, "trigger": request.trigger}
            known = {"inputs": inputs, "workflow": loaded.variables, "run": run}
            progress.context = await asyncio.to_thread(evaluate, context, known, at="context")
    except InvalidExpression as error:
        return error
    return None
