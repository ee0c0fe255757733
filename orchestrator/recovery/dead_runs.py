"""What becomes of a run whose process died, decided from the ledger. Nothing is written and no service is asked here.

A run that a service of ours started by itself (scheduled, asked of the scheduler, queued) goes on in a service.
Any other one, begun by a command that is gone, is ended as `interrupted`: its caller decides whether to resume it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from orchestrator.errors import ExitCode, NotAsRecorded, OrchestratorError, UsageError
from orchestrator.jsontypes import JsonObject, JsonValue
from orchestrator.ledger.events import (
    AttemptFinished,
    Event,
    RunFinished,
    RunResumed,
    RunStarted,
    RunTakenOver,
    StepFinished,
)
from orchestrator.ledger.reading.queries import SWEEP_WORKFLOW, TRIGGER_PROOF
from orchestrator.ledger.states import RunState, StepState
from orchestrator.ledger.types import LedgerReader, RunRecord, StepRecord
from orchestrator.runs.recorded_workflow import recorded_text, recorded_workflow
from orchestrator.runs.triggers import SERVICE_TRIGGERS
from orchestrator.runs.types import Retry, RunRequest, Services
from orchestrator.secret import Secret
from orchestrator.step_names import declared_step
from orchestrator.workflow.inputs import bind_inputs
from orchestrator.workflow.loader import LoadedWorkflow

CRASH = "crash"
"""The `error_kind` of an attempt whose process died."""

_DIED = "the orchestrator died while the step ran"

_GONE_ON_WITH = ("run", "step")
"""The tables from which it is taken what was asked for, which steps are over, and what these have given."""

GoesOn = Callable[[RunRecord], bool]
"""Whether the process that asks goes on with a run itself."""


class Verdict(Enum):
    """What becomes of a run whose process is dead, in words."""

    GO_ON = "gone on with"
    """Whoever found it goes on with it."""
    LEAVE = "left to a service"
    """It stays as it is: a service goes on with it."""
    INTERRUPT = "interrupted, and can be resumed"
    """It is ended, and may be resumed."""
    FAIL = "failed"
    CANCEL = "cancelled"


@dataclass(frozen=True, slots=True)
class Decision:
    """`reason` is what the ledger will say; `request` is there to go on with it."""

    verdict: Verdict
    reason: str
    request: RunRequest | None = None


@dataclass(frozen=True, slots=True)
class Cut:
    """The steps that the death of a process cut short."""

    running: tuple[StepRecord, ...] = ()
    """All that had begun and not ended, also those that waited for another try."""
    unfinished: tuple[StepRecord, ...] = ()
    """Those whose present attempt has no end on record yet."""
    crashed: tuple[StepRecord, ...] = ()
    """Those whose present attempt ended with a process, on record or not."""
    waiting: tuple[StepRecord, ...] = ()
    """Those for which somebody has to agree first: nothing of them has begun."""

    def attempts_finished(self) -> list[Event]:
        """The ends of the attempts that have none."""
        return [
            AttemptFinished(
                step=each.step, attempt=each.attempts, state=StepState.FAILED, error_kind=CRASH, reason=_DIED
            )
            for each in self.unfinished
        ]

    def not_repeated(self, loaded: LoadedWorkflow) -> list[Event]:
        """The ends of steps that say `on_crash: fail`."""
        steps = loaded.workflow.steps
        return [
            StepFinished(step=each.step, state=StepState.FAILED, reason=_DIED)
            for each in self.crashed
            if steps[declared_step(each.step)].on_crash == "fail"
        ]


def cut_short(reader: LedgerReader, run_id: str) -> Cut:
    """What a dead process left of the steps of a run. Raises LedgerError."""
    steps = reader.steps(run_id)
    running = tuple(each for each in steps if each.state in (StepState.RUNNING, StepState.INTERRUPTED))
    waiting = tuple(each for each in steps if each.state is StepState.WAITING)
    if not running:
        return Cut(waiting=waiting)
    ended = {
        (event.data["step"], event.data["attempt"]): event.data.get("error_kind")
        for event in reader.events(run_id, kind=AttemptFinished.kind)
    }
    return Cut(
        running=running,
        unfinished=tuple(each for each in running if (each.step, each.attempts) not in ended),
        crashed=tuple(each for each in running if ended.get((each.step, each.attempts), CRASH) == CRASH),
        waiting=waiting,
    )


def of_a_service(services: Services, record: RunRecord) -> bool:
    """Whether `serve` or a worker started the run by itself, so that any of them goes on with it."""
    return record.trigger in SERVICE_TRIGGERS or services.queue.holds(record.run_id)


def goes_on_here(services: Services, record: RunRecord) -> bool:
    """Whether any service goes on with the run by itself. What came through the queue goes back there."""
    return record.trigger in SERVICE_TRIGGERS and not services.queue.holds(record.run_id)


def is_left(services: Services, record: RunRecord, goes_on: GoesOn) -> bool:
    """Whether a running run stays as it is, for a service to go on with."""
    return _as_it_stands(services, record) is None and not goes_on(record) and of_a_service(services, record)


def decide(
    services: Services, record: RunRecord, dead: str, goes_on: GoesOn, secrets: Mapping[str, JsonValue] | None
) -> Decision:
    """What becomes of a running run of the dead process `dead`. Reads the ledger; parses only to go on."""
    if (decision := _as_it_stands(services, record)) is not None:
        return decision
    gone = f"the process {dead} is gone"
    a_services = of_a_service(services, record)
    if goes_on(record):
        if (times := takeovers(services, record.run_id)) >= services.max_takeovers:
            return Decision(
                Verdict.FAIL, f"{gone}, and {times} before it that went on with this run: no other one does"
            )
        try:
            return Decision(Verdict.GO_ON, gone, request_of(services, record, secrets))
        except NotAsRecorded as error:
            return Decision(Verdict.FAIL, f"it cannot go on: {error.message}")
        except OrchestratorError as error:
            if a_services:
                return Decision(Verdict.FAIL, f"it cannot go on: {error.message.splitlines()[0]}")
    elif a_services:
        return Decision(Verdict.LEAVE, gone)
    return Decision(Verdict.INTERRUPT, gone)


def _as_it_stands(services: Services, record: RunRecord) -> Decision | None:
    """Where the ledger alone decides."""
    store = services.heartbeat.store
    if (cancelled := store.cancellation(record.run_id)) is not None:
        return Decision(Verdict.CANCEL, cancelled)
    if record.task is not None:
        return Decision(Verdict.FAIL, "the process that carried it out is gone; a call is made again, not gone on with")
    if record.trigger == TRIGGER_PROOF:
        return Decision(Verdict.FAIL, "a proof is made again, not gone on with")
    if record.workflow == SWEEP_WORKFLOW:
        return Decision(Verdict.FAIL, "a sweep is made again, not gone on with")
    try:
        recorded_text(store, record.digest)
    except NotAsRecorded as error:
        return Decision(Verdict.FAIL, error.message)
    return None


def takeovers(services: Services, run_id: str) -> int:
    """How many other processes have gone on with the run since somebody resumed it last, or since it began.

    Each has died with it: one that dies of what the run does must not be followed by all.
    """
    resumed = max((event.seq for event in services.reader.events(run_id, kind=RunResumed.kind)), default=0)
    taken = services.reader.events(run_id, kind=RunTakenOver.kind)
    others = {event.data["runner"] for event in taken if event.seq > resumed and event.data.get("goes_on")}
    return len(others - {services.heartbeat.runner_id})


def ending(decision: Decision, cut: Cut) -> list[Event]:
    """What the ledger must say once the run's leases are closed, or on record as being revoked."""
    match decision.verdict:
        case Verdict.LEAVE:
            return []
        case Verdict.GO_ON:
            assert decision.request is not None
            return cut.not_repeated(decision.request.loaded)
        case Verdict.INTERRUPT:
            return [_finished(RunState.INTERRUPTED, ExitCode.INTERRUPTED, decision.reason)]
        case Verdict.FAIL | Verdict.CANCEL:
            steps: list[Event] = [
                StepFinished(step=each.step, state=StepState.CANCELLED, reason=_DIED)
                for each in (*cut.running, *cut.waiting)
            ]
            if decision.verdict is Verdict.CANCEL:
                return [*steps, _finished(RunState.CANCELLED, ExitCode.INTERRUPTED, decision.reason)]
            return [*steps, _finished(RunState.FAILED, ExitCode.STEP_FAILED, decision.reason)]


def _finished(state: RunState, code: ExitCode, reason: str) -> RunFinished:
    return RunFinished(state=state, exit_code=int(code), reason=reason)


def as_recorded(services: Services, record: RunRecord) -> LoadedWorkflow:
    """The workflow of a run of which the ledger shows what its history says, so that something can follow from it.

    Raises NotAsRecorded, and InvalidWorkflow where an action is not installed here.
    """
    directory = str(_beginning(services, record).get("directory", ""))
    loaded = recorded_workflow(services.heartbeat.store, record.digest, record.workflow, directory=directory)
    examined = services.reader.examine(record.run_id)
    changed = any(each.table in _GONE_ON_WITH for each in examined.differences)
    if examined.first_broken_event is not None or changed or loaded.workflow.agent != record.agent:
        raise NotAsRecorded(
            "what the ledger shows of it is not what its history says",
            hint=f"`orchestrator runs verify {record.run_id}` tells what was changed",
        )
    return loaded


def _beginning(services: Services, record: RunRecord) -> JsonObject:
    """What the run's first event says."""
    first = services.reader.events(record.run_id, kind=RunStarted.kind)
    return first[0].data if first else {}


def request_of(services: Services, record: RunRecord, secrets: Mapping[str, JsonValue] | None = None) -> RunRequest:
    """What was asked for when the run began. Secret inputs are not on record and must be given again.

    Raises UsageError without them and for a call in a task, NotAsRecorded, and InvalidWorkflow where an action is not
    installed here.
    """
    if record.task is not None:
        raise UsageError(
            f"{record.run_id} is a call in the task {record.task}",
            hint="its agent goes on with it by calling the tool again with the same key",
        )
    loaded = as_recorded(services, record)
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
    said = _beginning(services, record)
    return RunRequest(
        run_id=record.run_id,
        loaded=loaded,
        inputs=inputs,
        trigger=record.trigger,
        reason=str(said.get("reason", "")),
        retry=Retry(of=str(said.get("retry_of", "")), original=str(said.get("original", ""))),
    )
