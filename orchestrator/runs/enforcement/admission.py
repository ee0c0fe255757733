"""Whether anything of a run's workflow may be evaluated."""

from __future__ import annotations

import logging

from orchestrator.policy.admission import admission
from orchestrator.runs.types import RunProgress, Services

log = logging.getLogger(__name__)


async def any_admitted(services: Services, progress: RunProgress) -> bool:
    """Whether the policy admits at least one of the steps that are left. An engine that fails admits nothing."""
    for step in progress.request.loaded.workflow.steps:
        if step in progress.states:
            continue
        try:
            request = progress.admission_request(step, 1, services.clock.now())
            decision = await admission(services.policy, request)
        except Exception as error:  # raised again where the step itself is asked about, and recorded there
            log.debug("step %s is not admitted", step, exc_info=error)
            continue
        if decision is None or decision.allow:
            return True
    return False
