"""Putting runs into the shared queue, and a worker's taking them out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from orchestrator.actions.catalog import catalog
from orchestrator.clock import Clock
from orchestrator.errors import OrchestratorError, UsageError
from orchestrator.grants.models import DatabaseGrant
from orchestrator.ledger.coordination.queue import QueuedRun, RunQueue
from orchestrator.runs.runner import Runner
from orchestrator.runs.types import RunRequest, Services
from orchestrator.scheduling.launcher import Launched, Launcher
from orchestrator.secret import Secret
from orchestrator.workflow.inputs import bind_inputs
from orchestrator.workflow.loader import load_text
from orchestrator.workflow.models import Workflow

log = logging.getLogger(__name__)


def enqueue(queue: RunQueue, request: RunRequest, clock: Clock) -> bool:
    """Put a run into the queue; False if its id is known already, so that asking again does no harm.

    Raises UsageError for secret inputs: the queue is not a place for secrets.
    """
    secret = [name for name, value in request.inputs.items() if isinstance(value, Secret)]
    if secret:
        raise UsageError(
            f"the secret input `{secret[0]}` cannot wait in the queue",
            hint="keep it in Vault and let the step have it through a grant of the kind `secret`",
        )
    workflow = request.loaded.workflow
    queued = QueuedRun(
        run_id=request.run_id,
        workflow=workflow.name,
        digest=request.loaded.digest,
        inputs={name: value for name, value in request.inputs.items() if not isinstance(value, Secret)},
        trigger=request.trigger,
        connections=connections_of(workflow),
        max_runs=workflow.max_runs or 0,
        queued_at=clock.now(),
    )
    return queue.add(queued, workflow=request.loaded.text)


def connections_of(workflow: Workflow) -> tuple[str, ...]:
    """The databases that the grants of a workflow name, sorted."""
    grants = (grant for step in workflow.steps.values() for grant in step.grants.values())
    return tuple(sorted({grant.connection for grant in grants if isinstance(grant, DatabaseGrant)}))


def claiming(
    services: Services, launcher: Launcher, limits: Mapping[str, int], *, max_runs: int
) -> Callable[[], Awaitable[None]]:
    """The worker's regular look into the queue: claim and start as much as there is room for here."""
    runner = Runner(services)
    unbegun: set[str] = set()
    """Claimed here, and given up before the ledger had their beginning: others may have them."""

    def give_up(launched: Launched) -> None:
        if launched.begun.cancelled() or launched.begun.exception() is not None:
            unbegun.add(launched.run_id)

    async def claim_runs() -> None:
        heartbeat = services.heartbeat
        await asyncio.to_thread(heartbeat.enter)
        while unbegun:
            await asyncio.to_thread(services.queue.release, heartbeat.runner_id, run_id=next(iter(unbegun)))
            unbegun.pop()
        while len(launcher.active) < max_runs:
            claimed = await asyncio.to_thread(services.queue.claim, heartbeat.runner_id, limits)
            if claimed is None:
                return
            try:
                request = await asyncio.to_thread(_request, services, claimed)
            except Exception as error:  # noqa: BLE001 -- whatever it is, the claim must not stay
                why = error.message if isinstance(error, OrchestratorError) else f"unexpected {type(error).__name__}"
                log.error("run %s cannot be carried out here: %s", claimed.run_id, why)
                await asyncio.to_thread(services.queue.release, heartbeat.runner_id, run_id=claimed.run_id)
                return
            launched = launcher.launch(runner, request)
            launched.task.add_done_callback(lambda _, launched=launched: give_up(launched))  # type: ignore[misc]

    return claim_runs


def _request(services: Services, claimed: QueuedRun) -> RunRequest:
    text = services.heartbeat.store.text(claimed.digest)
    if text is None:
        raise UsageError("the text of its workflow is not in the ledger")
    loaded = load_text(text, filename=f"{claimed.workflow} of {claimed.run_id}", actions=catalog)
    inputs = bind_inputs(loaded.workflow, claimed.inputs)
    return RunRequest(run_id=claimed.run_id, loaded=loaded, inputs=inputs, trigger=claimed.trigger)
