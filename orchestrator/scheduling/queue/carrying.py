"""What a worker does with a run that the queue hands to it: carry it as far as it goes now.

The ledger alone says where the run is: not begun, given up by a process that died, waiting for somebody to agree, or
over. The queue may hand out the same run again and again, and to several workers at once, without harm.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NoReturn

from orchestrator.errors import (
    AgentBlocked,
    ExitCode,
    FenceLost,
    LedgerError,
    NotAsRecorded,
    OrchestratorError,
    Refused,
    RunExists,
    UsageError,
)
from orchestrator.ledger.coordination.queue import QueuedRun
from orchestrator.ledger.events import RunStarted
from orchestrator.ledger.ids import RUN_ID
from orchestrator.ledger.states import RunState
from orchestrator.ledger.types import RunRecord
from orchestrator.queue.executor import Asked, GivenBack
from orchestrator.queue.lanes import Limits, limits_of
from orchestrator.queue.shared import SharedQueue
from orchestrator.recovery.backoff import jitter_of, pause_after
from orchestrator.recovery.reopen import reopen
from orchestrator.recovery.resumption import take_nobodys
from orchestrator.recovery.retries.retry import request_of_retry
from orchestrator.recovery.unended import end_unbegun
from orchestrator.runs.recorded_workflow import recorded_workflow
from orchestrator.runs.runner import Runner
from orchestrator.runs.types import RunRequest, Services, TakenRun
from orchestrator.scheduling.launcher import Launched, Launcher
from orchestrator.scheduling.queue.asking import queued as queued_of
from orchestrator.workflow.inputs import bind_inputs
from orchestrator.workflow.loader import LoadedWorkflow

log = logging.getLogger(__name__)

APPROVAL_LOOK = timedelta(hours=1)
"""After how long a run that waits for somebody to agree is looked at again by itself. Who decides wakes it at once."""

ELSEWHERE_LOOK = timedelta(seconds=5)
"""After how long a run is looked at again that a process drives to which the queue did not hand it."""

PAUSED_LOOK = timedelta(seconds=2)
"""After how long a run is looked at again that DBOS has handed out although its workflow is paused."""

END_LOOK_SECONDS = 1.0
"""Between two looks for the end of a run whose task is over, but not its record."""

CANCELLED_THERE = "it was cancelled in DBOS"
"""Why a run has ended, for its record."""

NOTHING_KNOWN = "nothing is known of a run {}"

Offered = Callable[[str], LoadedWorkflow | None]
"""The workflow of this name that other programs may ask this worker for; None where it offers none."""


class NotCarriedOut(UsageError):
    """What another program asked for is not done: DBOS records this message, so nothing of its inputs is in it."""


@dataclass(slots=True)
class Carrier:
    """Carries the runs of one worker. Belongs to its event loop."""

    services: Services
    shared: SharedQueue
    launcher: Launcher
    offered: Offered

    async def carry(self, run_id: str, asked: Asked) -> str:
        """How the run has ended. Raises GivenBack where it has not: then it waits in the queue, or is put back there.

        Raises NotCarriedOut where another program asked for what there is not. DBOS records that, and nothing else: an
        error that it recorded would end the run for the queue, whatever the ledger says.
        """
        try:
            return await self._carry(run_id, asked)
        except NotCarriedOut:
            raise
        except Exception as error:
            why = error.message if isinstance(error, OrchestratorError) else f"unexpected {type(error).__name__}"
            log.error("run %s is put back into the queue: %s", run_id, why, extra={"run": run_id})
            log.debug("run %s was not carried", run_id, exc_info=error)
            raise GivenBack from error

    async def _carry(self, run_id: str, asked: Asked) -> str:
        record = await asyncio.to_thread(self.services.reader.run, run_id)
        if record is None:
            return await self._begin(run_id, asked)
        goes_on = record.state in (RunState.RUNNING, RunState.WAITING)
        if goes_on and not await asyncio.to_thread(self.services.queue.holds, run_id):
            raise NotCarriedOut(f"run {run_id} did not come through the queue")
        match record.state:
            case RunState.RUNNING:
                return await self._take(record)
            case RunState.WAITING:
                return await self._go_on(record)
            case _:
                return await self._over(run_id, record.state)

    async def _begin(self, run_id: str, asked: Asked) -> str:
        services = self.services
        tried = await asyncio.to_thread(services.queue.tried, run_id)
        if tried is None:
            await self._enter_of_others(run_id, asked)
            tried = await asyncio.to_thread(services.queue.tried, run_id)
        if tried is None:  # it was taken out meanwhile
            raise NotCarriedOut(NOTHING_KNOWN.format(run_id))
        queued, paused = tried
        if paused is not None:
            await self._hand_back(run_id, queued.workflow, None, services.clock.now() + PAUSED_LOOK)
        limit = services.max_takeovers
        if queued.tries > limit + 1:
            return await self._give_up(
                queued, f"{queued.tries - 1} workers died or failed before they could begin it: no other one tries"
            )
        try:
            request = await asyncio.to_thread(self._request, queued)
            await self._in_its_lane(run_id, request.loaded)
        except NotAsRecorded as error:
            return await self._give_up(queued, error.message)
        except (GivenBack, LedgerError):
            raise
        except Exception as error:  # noqa: BLE001 -- whatever it is, the run must not keep its place
            why = error.message if isinstance(error, OrchestratorError) else f"unexpected {type(error).__name__}"
            return await self._again_later(queued, f"it cannot be carried out here: {why}")
        return await self._carried(request, None, queued)

    async def _take(self, record: RunRecord) -> str:
        """Go on with a run that goes on: where its process died, and left it to whom the queue hands it."""
        owner = await asyncio.to_thread(self.services.heartbeat.store.owner, record.run_id)
        if owner is not None:
            await self._hold(record, ELSEWHERE_LOOK)
        found = await take_nobodys(self.services, record)
        if found is None:
            await self._hold(record, ELSEWHERE_LOOK)
        if found.resumable is None:
            log.error("run %s: %s", record.run_id, found.reason, extra=_about(record))
            await asyncio.to_thread(self.shared.bury, record.run_id, self.services.heartbeat.runner_id)
            raise GivenBack
        log.warning("took over run %s from %s", record.run_id, found.dead, extra=_about(record))
        return await self._carried(found.resumable.request, found.resumable, None)

    async def _go_on(self, record: RunRecord) -> str:
        """Go on with a run that waited for somebody to agree, if that is decided."""
        services = self.services
        decided = await asyncio.to_thread(services.approvals.store.decided_runs, services.clock.now())
        if record.run_id not in decided:
            await self._hold(record, APPROVAL_LOOK)
        try:
            taken = await reopen(services, record, {})
        except (AgentBlocked, FenceLost, UsageError) as error:
            log.debug("run %s is not resumed here: %s", record.run_id, error.message)
            await self._hold(record, ELSEWHERE_LOOK)
        log.info("run %s goes on: its approval is decided", record.run_id, extra=_about(record))
        return await self._carried(taken.request, taken, None)

    async def _carried(self, request: RunRequest, taken: TakenRun | None, queued: QueuedRun | None) -> str:
        """Carry the run out here, and see how it stands when its task is over."""
        launched = self.launcher.launch(Runner(self.services), request, taken)
        try:
            await asyncio.wait([launched.task])
        except asyncio.CancelledError:
            launched.cancel(ExitCode.INTERRUPTED, CANCELLED_THERE)
            raise
        if queued is not None and (error := _not_begun(launched)) is not None:
            return await self._unbegun(queued, request, error)
        return await self._ended(request.run_id)

    async def _unbegun(self, queued: QueuedRun, request: RunRequest, error: BaseException) -> str:
        if isinstance(error, Refused):
            return await self._give_up(queued, error.message, dead=False)
        if isinstance(error, RunExists):
            return await self._ended(queued.run_id)
        if isinstance(error, asyncio.CancelledError):  # the worker had no time for it
            await asyncio.to_thread(self.services.queue.untried, queued.run_id)
            await self._hand_back(queued.run_id, queued.workflow, limits_of(request.loaded.workflow), None)
        why = error.message if isinstance(error, OrchestratorError) else f"unexpected {type(error).__name__}"
        return await self._again_later(queued, f"it could not be begun: {why}")

    async def _ended(self, run_id: str) -> str:
        """Wait for the record of an end that came, if this process is the one that drives the run."""
        while True:
            record = await asyncio.to_thread(self.services.reader.run, run_id)
            owner = await asyncio.to_thread(self.services.heartbeat.store.owner, run_id)
            if record is not None and record.state is RunState.WAITING:
                await self._hold(record, APPROVAL_LOOK)
            if record is not None and record.state is not RunState.RUNNING:
                return await self._over(run_id, record.state)
            if record is not None and owner != self.services.heartbeat.runner_id:
                await self._hold(record, ELSEWHERE_LOOK)
            await asyncio.sleep(END_LOOK_SECONDS)

    async def _over(self, run_id: str, state: RunState) -> str:
        await asyncio.to_thread(self.services.queue.remove, [run_id])
        return state

    async def _enter_of_others(self, run_id: str, asked: Asked) -> None:
        """Enter what another program has put into DBOS's queue by itself. Raises NotCarriedOut."""
        if not asked.workflow:
            raise NotCarriedOut(NOTHING_KNOWN.format(run_id))
        if not (isinstance(asked.workflow, str) and isinstance(asked.inputs, dict) and isinstance(asked.reason, str)):
            raise NotCarriedOut("its arguments are not those of a run: `workflow`, `inputs` and `reason`")
        if not RUN_ID.fullmatch(run_id):
            raise NotCarriedOut("the workflow's id cannot be that of a run")
        try:
            loaded = await asyncio.to_thread(self.offered, asked.workflow)
            if loaded is None:
                raise NotCarriedOut(f"no workflow `{asked.workflow}` is offered by this worker")
            inputs = bind_inputs(loaded.workflow, asked.inputs)
            if any(declared.secret for declared in loaded.workflow.inputs.values()):
                raise NotCarriedOut("it has a secret input, and the queue is no place for secrets")
        except NotCarriedOut:
            raise
        except UsageError as error:
            log.error("run %s of `%s` is not carried out: %s", run_id, asked.workflow, error.message)
            raise NotCarriedOut("its inputs do not fit; the worker's log tells why") from error
        services = self.services
        request = RunRequest(run_id=run_id, loaded=loaded, inputs=inputs, trigger="queue", reason=asked.reason)
        entry = queued_of(request, services.clock.now())
        await asyncio.to_thread(lambda: services.queue.add(entry, workflow=loaded.text))

    async def _in_its_lane(self, run_id: str, loaded: LoadedWorkflow) -> None:
        """Have the run handed out again within its workflow's limits, where it came by a way that has others."""
        limits, name = limits_of(loaded.workflow), loaded.workflow.name
        standing = await asyncio.to_thread(self.shared.standing, [run_id])
        if any((each.lane, each.workflow) != (limits.lane, name) for each in standing):
            await asyncio.to_thread(self.services.queue.untried, run_id)
            await self._hand_back(run_id, name, limits, None)

    def _request(self, queued: QueuedRun) -> RunRequest:
        services, store = self.services, self.services.heartbeat.store
        loaded = recorded_workflow(store, queued.digest, queued.workflow, directory=queued.directory)
        if queued.retry_of:
            return request_of_retry(services, queued.retry_of, queued.run_id, reason=queued.reason)
        return RunRequest(
            run_id=queued.run_id,
            loaded=loaded,
            inputs=bind_inputs(loaded.workflow, queued.inputs),
            trigger=queued.trigger,
            reason=queued.reason,
        )

    async def _again_later(self, queued: QueuedRun, why: str) -> str:
        services, limit = self.services, self.services.max_takeovers
        if queued.tries > limit:
            return await self._give_up(queued, f"tried {queued.tries} times: {why}")
        pause = pause_after(queued.tries, jitter_of(queued.run_id, queued.tries))
        log.error(
            "run %s: %s; tried again in %.0f s, %d times at most over all workers",
            *(queued.run_id, why, pause, limit + 1 - queued.tries),
            extra={"run": queued.run_id, "workflow": queued.workflow},
        )
        until = services.clock.now() + timedelta(seconds=pause)
        return await self._hand_back(queued.run_id, queued.workflow, None, until)

    async def _give_up(self, queued: QueuedRun, reason: str, *, dead: bool = True) -> str:
        """Have the ledger say that the run failed, without its workflow having been read: nothing of it is open."""
        services, run_id = self.services, queued.run_id
        log.error("queued run %s is ended: %s", run_id, reason, extra={"run": run_id, "workflow": queued.workflow})
        if not await end_unbegun(services, _started(queued), run_id, reason):
            return await self._ended(run_id)
        await asyncio.to_thread(services.queue.remove, [run_id])
        if dead:
            await asyncio.to_thread(self.shared.bury, run_id, services.heartbeat.runner_id)
            raise GivenBack
        return RunState.FAILED

    async def _hold(self, record: RunRecord, pause: timedelta) -> NoReturn:
        """Give back a run that has begun, and whose workflow need not be readable here. Raises GivenBack."""
        until = self.services.clock.now() + pause
        await self._hand_back(record.run_id, record.workflow, None, until)

    async def _hand_back(self, run_id: str, workflow: str, limits: Limits | None, until: datetime | None) -> NoReturn:
        """Raises GivenBack. Without limits it stays in its lane."""
        shared, worker = self.shared, self.services.heartbeat.runner_id
        await asyncio.to_thread(lambda: shared.hold(run_id, worker, limits=limits, workflow=workflow, until=until))
        raise GivenBack


def _started(queued: QueuedRun) -> RunStarted:
    return RunStarted(
        workflow=queued.workflow,
        digest=queued.digest,
        agent="",  # only the text says it
        trigger=queued.trigger,
        inputs=queued.inputs,
        steps=(),
        reason=queued.reason,
        directory=queued.directory,
    )


def _not_begun(launched: Launched) -> BaseException | None:
    """Why the ledger has no beginning of the run from here, or None."""
    return asyncio.CancelledError() if launched.begun.cancelled() else launched.begun.exception()


def _about(record: RunRecord) -> dict[str, str]:
    return {"run": record.run_id, "workflow": record.workflow}
