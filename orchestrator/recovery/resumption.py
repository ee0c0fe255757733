"""A run id that is given again: the run is carried out once, whoever asks for it, and however often."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from orchestrator.errors import ExitCode, OrchestratorError, StepFailed, UnknownRun, UsageError
from orchestrator.jsontypes import JsonValue
from orchestrator.ledger.lease import OPEN
from orchestrator.ledger.states import RESUMABLE, RunState, StepState
from orchestrator.ledger.types import LeaseFilter, RunRecord
from orchestrator.recovery.dead_runs import Verdict
from orchestrator.recovery.reopen import reopen
from orchestrator.recovery.takeover import Recovered, Recovery
from orchestrator.runs.runner import Runner, recorded_error
from orchestrator.runs.types import Interruption, RunOutcome, RunRequest, Services, TakenRun
from orchestrator.workflow.inputs import public_inputs

_LOOK_SECONDS = 0.25
"""Between two looks at whether the process of a run is dead."""


async def run_once(
    services: Services,
    request: RunRequest,
    interruption: Interruption,
    others: Callable[[str], None] = lambda text: None,
) -> RunOutcome:
    """Run, or go on with, or tell the outcome of the run with this id. Beside a new run, close what the dead left.

    `others` is told in one sentence at most what became of other runs.
    Raises UsageError where it belongs to another workflow, was begun with other inputs, or is being run by a living
    process.
    """
    record = await asyncio.to_thread(services.reader.run, request.run_id)
    if record is None:
        beside = asyncio.create_task(_close_for_the_dead(services, others))
        try:
            return await Runner(services).run(request, interruption)
        finally:
            await beside
    if record.digest != request.loaded.digest:
        raise UsageError(
            f"run {request.run_id} is of another workflow, or of another version of this one",
            hint="give a run of its own id, or leave --run-id out",
        )
    _refuse_other_inputs(record, request)
    if record.state is not RunState.RUNNING and record.state not in RESUMABLE:
        others(f"run {record.run_id} had ended before: its outcome is told, and nothing is run")
    secret = [name for name, declared in request.loaded.workflow.inputs.items() if declared.secret]
    given = {name: value for name, value in request.inputs.items() if name in secret}
    return await resume(services, request.run_id, _revealed(given), interruption)


def _refuse_other_inputs(record: RunRecord, request: RunRequest) -> None:
    """Raises UsageError where a run was begun with other inputs than those given now. Secret ones are not on record."""
    given = public_inputs(request.loaded.workflow, request.inputs)
    if other := sorted(name for name in given if given[name] != record.inputs.get(name)):
        raise UsageError(
            f"run {record.run_id} was begun with other inputs: {', '.join(f'`{name}`' for name in other)}",
            hint=f"give a run of its own id; `orchestrator runs show {record.run_id} --json` tells its inputs",
        )


def _revealed(given: Mapping[str, object]) -> dict[str, JsonValue]:
    from orchestrator.secret import Secret

    return {name: value.reveal() for name, value in given.items() if isinstance(value, Secret)}


async def resume(
    services: Services, run_id: str, secrets: dict[str, JsonValue], interruption: Interruption
) -> RunOutcome:
    """Go on with a run that was interrupted, or whose process is dead; of a run that has ended, tell how.

    Raises UnknownRun, or UsageError if a living process drives it or it cannot go on as it was begun.
    """
    record = await asyncio.to_thread(services.reader.run, run_id)
    if record is None:
        raise UnknownRun(f"no run {run_id} is in the ledger", hint="`orchestrator runs list` shows those that are")
    taken: TakenRun | None = None
    if record.state is RunState.RUNNING:
        taken = await _from_the_dead(services, run_id, secrets)
        record = await asyncio.to_thread(services.reader.run, run_id)
        assert record is not None
    if record.state in RESUMABLE:
        taken = await reopen(services, record, secrets)
    if taken is not None:
        return await Runner(services).resume(taken, interruption)
    if record.state is RunState.RUNNING:
        owner = await asyncio.to_thread(services.heartbeat.store.owner, run_id)
        raise UsageError(
            f"run {run_id} is being driven by {owner or 'a process that left no name'}",
            hint=f"wait for it, or `orchestrator runs cancel {run_id}`",
        )
    return await asyncio.to_thread(recorded_outcome, services, record)


async def _from_the_dead(services: Services, run_id: str, secrets: dict[str, JsonValue]) -> TakenRun | None:
    """The run, if its process turns out to be dead within the time that this may take; else None."""
    recovery = Recovery(services, goes_on=lambda each: each.run_id == run_id, secrets={run_id: secrets})
    until = services.clock.monotonic() + services.dead_after + 1
    while True:
        for found in await recovery.once():
            if found.run_id == run_id and found.resumable is not None:
                return found.resumable
        owner = await asyncio.to_thread(services.heartbeat.store.owner, run_id)
        record = await asyncio.to_thread(services.reader.run, run_id)
        running = record is not None and record.state is RunState.RUNNING
        if not running or owner is None or not recovery.undecided(owner) or services.clock.monotonic() >= until:
            return None
        await asyncio.sleep(_LOOK_SECONDS)


async def take_nobodys(services: Services, record: RunRecord) -> Recovered | None:
    """Become the one who drives the run, and close what may still be open of it; None where it is somebody's.

    Where it cannot go on it is ended, and not `resumable`. Raises LedgerError.
    """
    heartbeat, run_id = services.heartbeat, record.run_id
    await asyncio.to_thread(heartbeat.enter)
    if not await asyncio.to_thread(heartbeat.store.adopt, run_id, heartbeat.runner_id):
        return None
    found: Recovered | None = None
    try:
        found = await Recovery(services, goes_on=lambda each: each.run_id == run_id).one(run_id)
        return found
    finally:
        if found is None or found.resumable is None:
            await asyncio.to_thread(lambda: heartbeat.store.release(run_id, dead=heartbeat.runner_id))


def recorded_outcome(services: Services, record: RunRecord) -> RunOutcome:
    """How a run came out that has ended, from the ledger."""
    steps = services.reader.steps(record.run_id)
    errors: dict[str, OrchestratorError] = {
        step.step: recorded_error(step) for step in steps if step.state in (StepState.FAILED, StepState.REFUSED)
    }
    if record.state is not RunState.SUCCEEDED and not errors and record.reason:
        errors["(run)"] = StepFailed(record.reason)
    return RunOutcome(
        run_id=record.run_id,
        state=record.state,
        exit_code=ExitCode(record.exit_code if record.exit_code is not None else int(ExitCode.STEP_FAILED)),
        reason=record.reason,
        steps={step.step: step.state for step in steps},
        errors=errors,
        tolerated=frozenset(errors) if record.state is RunState.SUCCEEDED else frozenset(),
        outputs={step.step: step.outputs for step in steps if isinstance(step.outputs, dict)},
        unconfirmed=tuple(services.reader.leases(LeaseFilter(run=record.run_id, states=OPEN))),
    )


async def _close_for_the_dead(services: Services, others: Callable[[str], None]) -> None:
    """Close what processes left that are certainly gone, and end their runs unless a service goes on with them."""
    try:
        found = await Recovery(services).once()
    except OrchestratorError as error:
        others(f"what another process left when it died could not be closed yet: {error.message}")
        return
    if found:
        others(_told(found))


def _told(found: Sequence[Recovered]) -> str:
    """One sentence on the runs of dead processes."""
    credentials = "revoked" if all(each.confirmed for each in found) else "being revoked"
    if len(found) == 1:
        (one,) = found
        resumable = one.verdict is Verdict.INTERRUPT
        return f"run {one.run_id} of {one.workflow}: its process was gone; its credentials are {credentials}" + (
            f"; `orchestrator runs resume {one.run_id}` goes on with it" if resumable else ""
        )
    return (
        f"{len(found)} runs whose processes were gone: their credentials are {credentials}; "
        "`orchestrator runs list --state interrupted` shows those that can be resumed"
    )
