"""Putting runs into the shared queue, and a worker's taking them out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from orchestrator.clock import Clock
from orchestrator.errors import NotAsRecorded, OrchestratorError, Refused, UsageError
from orchestrator.grants.models import DatabaseGrant
from orchestrator.ledger.coordination.queue import QueuedRun, RunQueue
from orchestrator.ledger.events import RunStarted
from orchestrator.recovery.backoff import FIRST_PAUSE, jitter_of, pause_after
from orchestrator.recovery.unended import end_unbegun
from orchestrator.runs.recorded_workflow import recorded_workflow
from orchestrator.runs.runner import Runner
from orchestrator.runs.types import RunRequest, Services
from orchestrator.scheduling.launcher import Launched, Launcher
from orchestrator.secret import Secret
from orchestrator.workflow.inputs import bind_inputs
from orchestrator.workflow.models.workflow import Workflow

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
        reason=request.reason,
        directory=request.loaded.directory,
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
    return _Claiming(services, launcher, limits, max_runs).once


@dataclass(slots=True)
class _Claiming:
    """One worker's look into the queue. A run that it cannot begin rests here, and holds up none behind it."""

    services: Services
    launcher: Launcher
    limits: Mapping[str, int]
    max_runs: int
    _unbegun: set[str] = field(default_factory=set)
    """Claimed here, and given up before the ledger had their beginning: others may have them."""
    _refused: dict[str, tuple[QueuedRun, str]] = field(default_factory=dict)
    """Claimed here, and not let begin by the ledger, at whatever worker: with the reason."""
    _resting: dict[str, float] = field(default_factory=dict)
    """Runs that cannot be begun here, with the time by the monotonic clock from which on it is tried again."""

    async def once(self) -> None:
        """Claim and start as much as there is room for. Raises LedgerError."""
        heartbeat, queue, runner = self.services.heartbeat, self.services.queue, Runner(self.services)
        await asyncio.to_thread(heartbeat.enter)
        while self._unbegun:
            run_id = next(iter(self._unbegun))
            await asyncio.to_thread(queue.release, heartbeat.runner_id, run_id=run_id, tried=False)
            self._unbegun.discard(run_id)
        while self._refused:
            run_id, (claimed, reason) = next(iter(self._refused.items()))
            await self._end(claimed, reason)
            del self._refused[run_id]
        now = self.services.clock.monotonic()
        self._resting = {run_id: until for run_id, until in self._resting.items() if until > now}
        while len(self.launcher.active) < self.max_runs:
            found = await asyncio.to_thread(queue.claim, heartbeat.runner_id, self.limits, besides=self._resting)
            if found is None:
                return
            if (request := await self._loaded(found)) is not None:
                launched = self.launcher.launch(runner, request)
                launched.task.add_done_callback(partial(self._over, found, launched))

    async def _loaded(self, claimed: QueuedRun) -> RunRequest | None:
        """The run as it can be started; None where it cannot, and then it is given back or has an end."""
        limit = self.services.max_takeovers
        if claimed.tries > limit + 1:
            reason = f"{claimed.tries - 1} workers died or failed before they could begin it: no other one tries"
            await self._end(claimed, reason)
            return None
        try:
            return await asyncio.to_thread(_request, self.services, claimed)
        except NotAsRecorded as error:
            await self._end(claimed, error.message)
        except Exception as error:  # noqa: BLE001 -- whatever it is, the claim must not stay
            why = error.message if isinstance(error, OrchestratorError) else f"unexpected {type(error).__name__}"
            if claimed.tries > limit:
                await self._end(claimed, f"tried {claimed.tries} times: it cannot be carried out here: {why}")
                return None
            pause = pause_after(claimed.tries, jitter_of(claimed.run_id, claimed.tries))
            self._resting[claimed.run_id] = self.services.clock.monotonic() + pause
            about = {"run": claimed.run_id, "workflow": claimed.workflow}
            log.error(
                "run %s cannot be carried out here: %s; tried again in %.0f s, %d times at most over all workers",
                *(claimed.run_id, why, pause, limit + 1 - claimed.tries),
                extra=about,
            )
            heartbeat = self.services.heartbeat
            await asyncio.to_thread(self.services.queue.release, heartbeat.runner_id, run_id=claimed.run_id)
        return None

    async def _end(self, claimed: QueuedRun, reason: str) -> None:
        """Have the ledger say that the run failed, without its workflow having been read: nothing of it is open."""
        about = {"run": claimed.run_id, "workflow": claimed.workflow}
        log.error("queued run %s is ended: %s", claimed.run_id, reason, extra=about)
        if await end_unbegun(self.services, _started(claimed), claimed.run_id, reason):
            return
        self._resting[claimed.run_id] = self.services.clock.monotonic() + FIRST_PAUSE
        await asyncio.to_thread(self.services.queue.release, self.services.heartbeat.runner_id, run_id=claimed.run_id)

    def _over(self, claimed: QueuedRun, launched: Launched, task: asyncio.Task[None]) -> None:
        error = None if launched.begun.cancelled() else launched.begun.exception()
        if isinstance(error, Refused):
            self._refused[claimed.run_id] = (claimed, error.message)
        elif launched.begun.cancelled() or error is not None:
            self._unbegun.add(claimed.run_id)


def _started(claimed: QueuedRun) -> RunStarted:
    return RunStarted(
        workflow=claimed.workflow,
        digest=claimed.digest,
        agent="",  # only the text says it
        trigger=claimed.trigger,
        inputs=claimed.inputs,
        steps=(),
        reason=claimed.reason,
        directory=claimed.directory,
    )


def _request(services: Services, claimed: QueuedRun) -> RunRequest:
    store = services.heartbeat.store
    loaded = recorded_workflow(store, claimed.digest, claimed.workflow, directory=claimed.directory)
    inputs = bind_inputs(loaded.workflow, claimed.inputs)
    return RunRequest(
        run_id=claimed.run_id, loaded=loaded, inputs=inputs, trigger=claimed.trigger, reason=claimed.reason
    )
