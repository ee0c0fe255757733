"""Going on where another process died: its leases are closed first, then its runs go on or end.

A process is dead when it is certainly gone (same machine, and no such process), or when it gave no
sign of life for `DEAD_AFTER` seconds of our own monotonic clock, whatever any wall clock says. Of
several that find it one takes each run: by the owner's row, and for good by the fence. The order for
one run is always: fence, the dead process's own Vault tokens, its leases, the steps' states, and only
then whether it goes on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from orchestrator.actions.catalog import catalog
from orchestrator.errors import ExitCode, FenceLost, OrchestratorError, UsageError
from orchestrator.jsontypes import JsonValue
from orchestrator.ledger.coordination.runners import RunnerRecord
from orchestrator.ledger.events import (
    AttemptFinished,
    Event,
    RunFinished,
    RunState,
    RunTakenOver,
    StepFinished,
    StepState,
)
from orchestrator.ledger.lease import OPEN
from orchestrator.ledger.reading.queries import SWEEP_WORKFLOW
from orchestrator.ledger.types import LeaseFilter, RunRecord, StepRecord
from orchestrator.recovery.closing_pass import Leftover
from orchestrator.recovery.open_leases import close_leases
from orchestrator.runs.processes import certainly_gone
from orchestrator.runs.types import RunRequest, Services, TakenRun
from orchestrator.secret import Secret
from orchestrator.workflow.inputs import bind_inputs
from orchestrator.workflow.loader import load_text

log = logging.getLogger(__name__)

DEAD_AFTER = 4.0
"""Seconds without a sign of life after which a process is taken for dead."""

_REVOKE_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """What became of one run of a dead process. `resumable` is None if the run was ended, with `reason`."""

    run_id: str
    workflow: str
    dead: str
    leases: tuple[Leftover, ...]
    resumable: TakenRun | None
    reason: str = ""

    @property
    def confirmed(self) -> bool:
        """Whether every lease that the dead process left is gone for certain."""
        return all(each.confirmed for each in self.leases)


@dataclass(slots=True)
class Recovery:
    """Looks for dead processes. Keep one for as long as this process lives: it remembers the beats that it saw."""

    services: Services
    dead_after: float = DEAD_AFTER
    secrets: dict[str, dict[str, JsonValue]] = field(default_factory=dict)
    """Secret inputs that were given again, by run id."""
    _seen: dict[str, tuple[int, float]] = field(default_factory=dict)

    async def once(self) -> list[Recovered]:
        """Bury the dead that can be seen now, and take over their runs. Safe to repeat, and beside others who do it."""
        found: list[Recovered] = []
        for dead in await asyncio.to_thread(self._dead):
            found += await self._bury(dead)
        if found:
            await self.services.engine.settle()
        return found

    def suspects(self) -> int:
        """How many processes have been silent since we looked first, and may turn out to be dead."""
        return len(self._seen)

    async def patiently(self) -> list[Recovered]:
        """As `once`, waiting as long as it takes to tell a silent process from a dead one."""
        found = await self.once()
        until = self.services.clock.monotonic() + self.dead_after + 1
        while self._seen and self.services.clock.monotonic() < until:
            await asyncio.sleep(0.25)
            found += await self.once()
        return found

    def _dead(self) -> list[RunnerRecord]:
        store, now = self.services.heartbeat.store, self.services.clock.monotonic()
        dead: list[RunnerRecord] = []
        present = [each for each in store.all() if each.runner_id != self.services.heartbeat.runner_id]
        for each in present:
            beat, since = self._seen.get(each.runner_id, (-1, now))
            if beat != each.beat:
                self._seen[each.runner_id] = (each.beat, now)
                since = now
            silent = now - since >= self.dead_after
            if each.gone or ((silent or certainly_gone(each.process)) and store.declare_gone(each)):
                dead.append(each)
                self._seen.pop(each.runner_id, None)
        for known in set(self._seen) - {each.runner_id for each in present}:
            del self._seen[known]
        return dead

    async def _bury(self, dead: RunnerRecord) -> list[Recovered]:
        services, store = self.services, self.services.heartbeat.store
        found: list[Recovered] = []
        runs = await asyncio.to_thread(store.unfinished, dead.runner_id)
        taken: list[tuple[RunRecord, int]] = []
        for run_id in runs:
            if (fence := await self._take(run_id, dead)) is not None:
                record = services.reader.run(run_id)
                assert record is not None
                taken.append((record, fence))
        revoked = await self._revoke_tokens(dead)
        for record, fence in taken:
            try:
                found.append(await self._recover(record, fence, dead, tokens_gone=bool(revoked)))
            except FenceLost:
                continue  # somebody else has taken it from us
        await asyncio.to_thread(services.queue.release, dead.runner_id)
        if revoked is not None and not await asyncio.to_thread(store.unfinished, dead.runner_id):
            await asyncio.to_thread(store.retire, dead.runner_id)
        return found

    async def _take(self, run_id: str, dead: RunnerRecord) -> int | None:
        heartbeat = self.services.heartbeat
        await asyncio.to_thread(heartbeat.enter)
        if not await asyncio.to_thread(heartbeat.store.take, run_id, heartbeat.runner_id, dead=dead.runner_id):
            return None
        fence = await self.services.ledger.take_over(run_id)
        event = RunTakenOver(runner=heartbeat.runner_id, reason=f"the process {dead.runner_id} is gone")
        await self.services.ledger.append(run_id, fence, [event])
        return fence

    async def _revoke_tokens(self, dead: RunnerRecord) -> int | None:
        """Revoke the Vault tokens that the dead process logged in for; all its step tokens hang from them.

        Returns how many there were, or None if Vault did not confirm it for each.
        """
        services = self.services
        accessors = await asyncio.to_thread(services.heartbeat.store.tokens, dead.runner_id)
        until = services.clock.monotonic() + _REVOKE_SECONDS
        for accessor in accessors:
            try:
                await services.broker.vault.revoke_accessor(accessor, deadline=until)
            except OrchestratorError as error:
                log.warning("a token of %s could not be revoked: %s", dead.runner_id, error.message)
                return None
        return len(accessors)

    async def _recover(self, record: RunRecord, fence: int, dead: RunnerRecord, *, tokens_gone: bool) -> Recovered:
        services = self.services
        left = services.reader.leases(LeaseFilter(run=record.run_id, states=OPEN, limit=100_000))
        leases = await close_leases(
            services, fence, left, f"the process {dead.runner_id} is gone", parent_revoked=tokens_gone
        )
        steps = await asyncio.to_thread(services.reader.steps, record.run_id)
        cancelled = await asyncio.to_thread(services.heartbeat.store.cancellation, record.run_id)
        request, reason = self._request(record) if cancelled is None else (None, cancelled)
        events = list(_settled_steps(request, steps))
        if request is None:
            state = RunState.CANCELLED if cancelled is not None else RunState.FAILED
            code = ExitCode.INTERRUPTED if cancelled is not None else ExitCode.STEP_FAILED
            events.append(RunFinished(state=state, exit_code=int(code), reason=reason))
        if events:
            await services.ledger.append(record.run_id, fence, events)
        resumable = None
        if request is not None:
            steps = await asyncio.to_thread(services.reader.steps, record.run_id)
            resumable = TakenRun(request=request, fence=fence, steps=tuple(steps))
        return Recovered(
            run_id=record.run_id,
            workflow=record.workflow,
            dead=dead.runner_id,
            leases=tuple(leases),
            resumable=resumable,
            reason=reason,
        )

    def _request(self, record: RunRecord) -> tuple[RunRequest | None, str]:
        """The run as it was asked for, from the ledger; or why it cannot go on."""
        if record.trigger == "prove":
            return None, "a proof is made again, not gone on with"
        if record.workflow == SWEEP_WORKFLOW:
            return None, "a sweep is made again, not gone on with"
        text = self.services.heartbeat.store.text(record.digest)
        if text is None:
            return None, "the workflow's text is not in the ledger"
        try:
            return request_of(record, text, self.secrets.get(record.run_id)), ""
        except OrchestratorError as error:
            return None, f"it cannot go on: {error.message.splitlines()[0]}"


def request_of(record: RunRecord, text: str, secrets: dict[str, JsonValue] | None = None) -> RunRequest:
    """What was asked for when the run began. Secret inputs are not on record and must be given again.

    Raises UsageError without them, and InvalidWorkflow where an action of the workflow is not installed here.
    """
    loaded = load_text(text, filename=f"{record.workflow} of {record.run_id}", actions=catalog)
    given: dict[str, JsonValue] = {**record.inputs, **(secrets or {})}
    for name, declared in loaded.workflow.inputs.items():
        if declared.secret and name not in (secrets or {}):
            if not declared.required and given.get(name) is None:
                continue
            raise UsageError(
                f"the secret input `{name}` is not kept in the ledger",
                hint=f"orchestrator runs resume {record.run_id} --inputs FILE",
            )
    inputs: dict[str, JsonValue | Secret] = bind_inputs(loaded.workflow, given)
    return RunRequest(run_id=record.run_id, loaded=loaded, inputs=inputs, trigger=record.trigger)


def _settled_steps(request: RunRequest | None, steps: Sequence[StepRecord]) -> list[Event]:
    """What the ledger must say of the steps that were running: their attempt is over, and for some the step."""
    events: list[Event] = []
    for record in steps:
        if record.state is not StepState.RUNNING:
            continue
        reason = "the orchestrator died while the step ran"
        events.append(
            AttemptFinished(
                step=record.step, attempt=record.attempts, state=StepState.FAILED, error_kind="crash", reason=reason
            )
        )
        if request is None:
            events.append(StepFinished(step=record.step, state=StepState.CANCELLED, reason=reason))
        elif request.loaded.workflow.steps[record.step].on_crash == "fail":
            events.append(StepFinished(step=record.step, state=StepState.FAILED, reason=reason))
    return events
