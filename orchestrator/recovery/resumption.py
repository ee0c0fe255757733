"""A run id that is given again: the run is carried out once, whoever asks for it, and however often."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from orchestrator.errors import ExitCode, OrchestratorError, StepFailed, UnknownRun, UsageError
from orchestrator.jsontypes import JsonValue
from orchestrator.ledger.events import RunState, StepState
from orchestrator.ledger.lease import OPEN
from orchestrator.ledger.types import LeaseFilter, RunRecord
from orchestrator.recovery.takeover import Recovery
from orchestrator.runs.runner import Runner, recorded_error
from orchestrator.runs.types import Interruption, RunOutcome, RunRequest, Services


async def run_once(
    services: Services,
    request: RunRequest,
    interruption: Interruption,
    notice: Callable[[str], None] = lambda text: None,
) -> RunOutcome:
    """Run, or go on with, or tell the outcome of the run with this id. Beside a new run, close what the dead left.

    Raises UsageError where it belongs to another workflow or is being run by a living process.
    """
    record = await asyncio.to_thread(services.reader.run, request.run_id)
    if record is None:
        beside = asyncio.create_task(_close_for_the_dead(services, notice))
        try:
            return await Runner(services).run(request, interruption)
        finally:
            await beside
    if record.digest != request.loaded.digest:
        raise UsageError(
            f"run {request.run_id} is of another workflow, or of another version of this one",
            hint="give a run of its own id, or leave --run-id out",
        )
    secret = [name for name, declared in request.loaded.workflow.inputs.items() if declared.secret]
    given = {name: value for name, value in request.inputs.items() if name in secret}
    return await resume(services, request.run_id, _revealed(given), interruption)


def _revealed(given: Mapping[str, object]) -> dict[str, JsonValue]:
    from orchestrator.secret import Secret

    return {name: value.reveal() for name, value in given.items() if isinstance(value, Secret)}


async def resume(
    services: Services, run_id: str, secrets: dict[str, JsonValue], interruption: Interruption
) -> RunOutcome:
    """Go on with a run whose process is dead; of a run that has ended, tell how.

    Raises UnknownRun, or UsageError if a living process drives it.
    """
    if await asyncio.to_thread(services.reader.run, run_id) is None:
        raise UnknownRun(f"no run {run_id} is in the ledger", hint="`orchestrator runs list` shows those that are")
    recovery = Recovery(services, secrets={run_id: secrets})
    for found in await recovery.patiently():
        if found.run_id == run_id and found.resumable is not None:
            return await Runner(services).resume(found.resumable, interruption)
    record = await asyncio.to_thread(services.reader.run, run_id)
    assert record is not None
    if record.state is RunState.RUNNING:
        owner = await asyncio.to_thread(services.heartbeat.store.owner, run_id)
        raise UsageError(
            f"run {run_id} is being driven by {owner or 'a process that left no name'}",
            hint=f"wait for it, or `orchestrator runs cancel {run_id}`",
        )
    return await asyncio.to_thread(recorded_outcome, services, record)


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
        unconfirmed=tuple(services.reader.leases(LeaseFilter(run=record.run_id, states=OPEN))),
    )


async def _close_for_the_dead(services: Services, notice: Callable[[str], None]) -> None:
    """Close what processes left that are certainly gone. Their runs stay: whoever may decides to go on with them."""
    try:
        found = await Recovery(services).once()
    except OrchestratorError as error:
        notice(f"what another process left when it died could not be closed yet: {error.message}")
        return
    for each in found:
        notice(
            f"run {each.run_id} of {each.workflow}: its process was gone; its credentials are "
            + ("revoked" if each.confirmed else "being revoked")
            + (f"; `orchestrator runs resume {each.run_id}` goes on with it" if each.resumable else "")
        )
