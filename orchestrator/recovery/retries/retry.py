"""The retry of a failed run: a run of its own that takes over what succeeded there and carries out the rest.

A run is retried once, and its retry again if that fails, too: so the runs are a chain, in which no step that has
succeeded is carried out a second time. Two processes cannot begin two retries of one run; an index of the ledger sees
to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from orchestrator.errors import NotAsRecorded, RunExists, UnknownRun, UsageError
from orchestrator.jsontypes import JsonValue, counted
from orchestrator.ledger.events import RunStarted, StepFinished
from orchestrator.ledger.states import RunState, StepState
from orchestrator.ledger.types import LedgerReader, RunRecord
from orchestrator.recovery.dead_runs import as_recorded
from orchestrator.recovery.resumption import resume, run_once
from orchestrator.recovery.retries.choice import counted_steps, refuse_what_has_no_retry
from orchestrator.runs.recorded_workflow import recorded_workflow
from orchestrator.runs.triggers import TRIGGER_RETRY
from orchestrator.runs.types import Interruption, Retry, RunOutcome, RunRequest, Services
from orchestrator.secret import Secret
from orchestrator.workflow.inputs import HIDDEN, bind_inputs
from orchestrator.workflow.loader import LoadedWorkflow

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedRetry:
    """The retry `run_id` of the run `of`. `mended` is the workflow as it is now; None: as it is on record.

    `given` are the inputs that the ledger does not have: secret ones, and those that a mended workflow has more. Texts
    are read as the declared type.
    """

    of: str
    run_id: str
    given: Mapping[str, JsonValue]
    mended: LoadedWorkflow | None = None
    reason: str = ""


async def retry_once(
    services: Services, wanted: WantedRetry, interruption: Interruption, say: Say, others: Say
) -> RunOutcome:
    """Retry the run; where `run_id` is that of its retry already, go on with that or tell its outcome.

    `say` is told what is taken over and what runs again, `others` what became of other runs. Raises UnknownRun, and
    UsageError where the run has no retry, has one already, or was begun with other inputs.
    """
    record = await asyncio.to_thread(services.reader.run, wanted.of)
    if record is None:
        raise UnknownRun(f"no run {wanted.of} is in the ledger", hint="`orchestrator runs list` shows those that are")
    begun = await asyncio.to_thread(services.reader.run, wanted.run_id)
    if begun is not None:
        return await _again(services, wanted, begun, interruption, others)
    await asyncio.to_thread(refuse_retry, services.reader, record)
    request = await asyncio.to_thread(_request, services, wanted, record)
    say(_told(record, request))
    try:
        return await run_once(services, request, interruption, others)
    except RunExists:
        await asyncio.to_thread(_refuse_a_second, services.reader, record)
        raise


def request_of_retry(services: Services, of: str, run_id: str, *, reason: str) -> RunRequest:
    """What is carried out where the retry was put into the queue. Raises NotAsRecorded, UsageError, InvalidWorkflow."""
    record = services.reader.run(of)
    if record is None:
        raise NotAsRecorded(f"the run {of} that it goes on from is not in the ledger")
    if not record.steps:  # nobody could begin it: there is nothing to go on from
        started = services.reader.events(of, kind=RunStarted.kind)[0].data
        loaded = recorded_workflow(
            services.heartbeat.store, record.digest, record.workflow, directory=str(started.get("directory", ""))
        )
        return RunRequest(
            run_id=run_id,
            loaded=loaded,
            inputs=bind_inputs(loaded.workflow, record.inputs),
            trigger=TRIGGER_RETRY,
            reason=reason,
            retry=Retry(of=of, original=of),
        )
    return _request(services, WantedRetry(of=of, run_id=run_id, given={}, reason=reason), record)


def refuse_retry(reader: LedgerReader, record: RunRecord) -> None:
    """Raise UsageError where a run has no retry, or has one already."""
    refuse_what_has_no_retry(record)
    _refuse_a_second(reader, record)


async def _again(
    services: Services, wanted: WantedRetry, begun: RunRecord, interruption: Interruption, others: Say
) -> RunOutcome:
    if begun.retry_of != wanted.of:
        raise UsageError(
            f"run {begun.run_id} is in the ledger, and no retry of {wanted.of}",
            hint="give the retry an id of its own, or leave --run-id out",
        )
    if wanted.mended is not None and wanted.mended.digest != begun.digest:
        raise UsageError(
            f"run {begun.run_id} was begun with another version of the workflow",
            hint=f"give the file as it was then, or none; `orchestrator runs show {begun.run_id}` tells how it stands",
        )
    if begun.state not in (RunState.RUNNING, RunState.INTERRUPTED, RunState.WAITING):
        others(f"run {begun.run_id} had ended before: its outcome is told, and nothing is run")
    secrets = {name: value for name, value in wanted.given.items() if begun.inputs.get(name) == HIDDEN}
    return await resume(services, begun.run_id, secrets, interruption)


def _refuse_a_second(reader: LedgerReader, record: RunRecord) -> None:
    retry = reader.retry_of(record.run_id)
    if retry is None:
        return
    hint = {
        RunState.RUNNING: f"`orchestrator runs show {retry.run_id} --follow` shows how it goes on",
        RunState.SUCCEEDED: "it has succeeded: there is nothing left to retry",
        RunState.INTERRUPTED: f"`orchestrator runs resume {retry.run_id}` goes on with it",
        RunState.WAITING: f"`orchestrator runs resume {retry.run_id}` goes on with it",
    }
    raise UsageError(
        f"run {record.run_id} has been retried already, as {retry.run_id}",
        hint=hint.get(retry.state, f"retry that one: `orchestrator runs retry {retry.run_id}`"),
    )


def _request(services: Services, wanted: WantedRetry, record: RunRecord) -> RunRequest:
    """What is carried out. Raises UsageError, and InvalidWorkflow where an action is not installed here."""
    try:
        recorded = as_recorded(services, record)
    except NotAsRecorded as error:
        raise NotAsRecorded(f"run {record.run_id} cannot be retried: {error.message}", hint=error.hint) from error
    loaded = wanted.mended or recorded
    _refuse_another_workflow(record, loaded)
    steps = {each.step: each for each in services.reader.steps(record.run_id)}
    taken = counted_steps(steps.values(), recorded.workflow, loaded.workflow)
    started = services.reader.events(record.run_id, kind=RunStarted.kind)[0].data
    return RunRequest(
        run_id=wanted.run_id,
        loaded=loaded,
        inputs=_inputs(loaded, recorded, record, wanted.given),
        trigger=TRIGGER_RETRY,
        reason=wanted.reason,
        retry=Retry(
            of=record.run_id,
            original=str(started.get("original") or record.run_id),
            taken=tuple(_taken(record.run_id, step, steps[step].outputs) for step in taken),
        ),
    )


def _taken(run_id: str, step: str, outputs: JsonValue) -> StepFinished:
    return StepFinished(
        step=step, state=StepState.SUCCEEDED, reason=f"taken from {run_id}", outputs=outputs, taken_from=run_id
    )


def _refuse_another_workflow(record: RunRecord, loaded: LoadedWorkflow) -> None:
    workflow = loaded.workflow
    if workflow.is_task or workflow.name != record.workflow:
        raise UsageError(
            f"run {record.run_id} is of the workflow `{record.workflow}`, and the file declares `{workflow.name}`",
            hint="`orchestrator run FILE` begins a run of it",
        )
    if workflow.agent != record.agent:
        raise UsageError(
            f"run {record.run_id} acted for the agent `{record.agent}`, and the file is for `{workflow.agent}`: "
            "what one agent was given is not handed to another",
            hint="`orchestrator run FILE` begins a run of its own",
        )


def _inputs(
    loaded: LoadedWorkflow, recorded: LoadedWorkflow, record: RunRecord, given: Mapping[str, JsonValue]
) -> dict[str, JsonValue | Secret]:
    """Those of the run, and what is given of those that are not on record."""
    declared, before = loaded.workflow.inputs, recorded.workflow.inputs
    kept = {
        name: value
        for name, value in record.inputs.items()
        if name in declared and not declared[name].secret and name in before and not before[name].secret
    }
    for name, each in declared.items():
        if each.secret and name not in given and (each.required or record.inputs.get(name) is not None):
            raise UsageError(
                f"the secret input `{name}` is not kept in the ledger",
                hint=f"orchestrator runs retry {record.run_id} --inputs FILE",
            )
    bound: dict[str, JsonValue | Secret] = bind_inputs(loaded.workflow, {**kept, **given}, from_text=True)
    if other := sorted(name for name in kept if bound[name] != kept[name]):
        raise UsageError(
            f"run {record.run_id} was begun with another value of: {', '.join(f'`{name}`' for name in other)}",
            hint="a retry has the inputs of its run: leave them out; `orchestrator run` begins a run with others",
        )
    return bound


def _told(record: RunRecord, request: RunRequest) -> str:
    """`run X goes on from Y; taken over: a, b; carried out: c`."""
    taken = [end.step for end in request.retry.taken if end.step in request.loaded.workflow.steps]
    items = len(request.retry.taken) - len(taken)
    more = f" and {counted(items, 'item')} of others" if items else ""
    rest = [step for step in request.loaded.workflow.steps if step not in taken]
    return (
        f"run {request.run_id} goes on from {record.run_id}; "
        f"taken over: {', '.join(taken) or ('' if items else 'nothing')}{more}; "
        f"carried out: {', '.join(rest) or 'nothing'}"
    )
