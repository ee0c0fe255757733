"""From events to the rows of the current-state tables: pure functions, the same for every database.

A row maps column names to what is stored: text, whole numbers or nothing. Times are text (see `codec`),
JSON is canonical text. Rebuilding a run's rows from its events gives the same rows.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import assert_never

from orchestrator.errors import IllegalTransition, LedgerError
from orchestrator.ledger.events import (
    ApprovalEnded,
    ApprovalRequested,
    ApprovalVoted,
    AttemptFinished,
    AttemptStarted,
    AttemptWaits,
    Decided,
    Event,
    LeaseDenied,
    LeaseEnded,
    LeaseEvent,
    LeaseExpired,
    LeaseFailed,
    LeaseIssued,
    LeaseLoginTried,
    LeaseRenewed,
    LeaseRequested,
    LeaseRevocationFailed,
    LeaseRevoked,
    LeaseRevoking,
    LeaseVaultRevoked,
    LogRestarted,
    Notified,
    OrphansSwept,
    RunFinished,
    RunNotified,
    RunResumed,
    RunStarted,
    RunTakenOver,
    StepFinished,
    ValuesDropped,
)
from orchestrator.ledger.lease import FINAL, STILL_WORKS, VAULT_REVOKED, LeaseState, check_transition
from orchestrator.ledger.states import RESUMABLE, RunState, StepState, TaskState
from orchestrator.ledger.storage.codec import ValueKind, canonical_json
from orchestrator.ledger.storage.times import time_to_text
from orchestrator.ledger.task_events import TaskCalled, TaskClosed, TaskOpened
from orchestrator.step_names import declared_step

Stored = str | int | None
Row = Mapping[str, Stored]


@dataclass(slots=True)
class RunRows:
    """What the current-state tables hold of one run."""

    run: Row = field(default_factory=dict)
    steps: MutableMapping[str, Row] = field(default_factory=dict)
    """By step id."""
    leases: MutableMapping[str, Row] = field(default_factory=dict)
    """By lease id."""

    def merge(self, changed: RunRows) -> None:
        """Take over the rows that changed; each replaces its predecessor as a whole."""
        self.run = changed.run or self.run
        self.steps.update(changed.steps)
        self.leases.update(changed.leases)


def project(before: RunRows, events: Iterable[tuple[str, Event]]) -> RunRows:
    """The rows that the events, each with its time, change or add, whole; `before` is left as it is.

    Raises IllegalTransition where a lease, or the run, cannot become what an event says.
    """
    changed = RunRows()
    present = RunRows(before.run, ChainMap(changed.steps, before.steps), ChainMap(changed.leases, before.leases))
    for time, event in events:
        match event:
            case RunStarted() | TaskOpened():
                changed.run = _started(present.run, event, time)
            case TaskCalled() | TaskClosed():
                changed.run = {**present.run, **_task_moved(present.run, event, time)}
            case RunFinished():
                changed.run = {**present.run, **_run_finished(present.run, event, time)}
                if event.state is RunState.INTERRUPTED:
                    changed.steps.update(_interrupted(present.steps))
            case RunResumed():
                changed.run = {**present.run, **_run_resumed(present.run)}
            case AttemptStarted() | AttemptFinished() | StepFinished():
                changed.steps[event.step] = _step(present, event, time)
            case LeaseRequested():
                changed.leases[event.lease_id] = _lease_requested(present, event, time)
            case ApprovalRequested():
                changed.steps[event.step] = _step_waits(present, event)
            case ValuesDropped():
                changed.run = {**present.run, **_values_dropped(present.run, event)}
                if ValueKind.OUTPUTS in event.values:
                    changed.steps.update({name: {**row, "outputs": "null"} for name, row in present.steps.items()})
            case (
                AttemptWaits()
                | Decided()
                | Notified()
                | RunNotified()
                | ApprovalVoted()
                | ApprovalEnded()
                | OrphansSwept()
                | LogRestarted()
                | RunTakenOver()
            ):
                pass
            case _:
                changed.leases[event.lease_id] = _lease_moved(present.leases.get(event.lease_id), event, time)
        present.run = changed.run or before.run
    return changed


def storable(text: str) -> str:
    """The text, with what a database cannot hold (NUL, lone surrogates) replaced. The event keeps the original."""
    if text.isascii() and "\0" not in text:
        return text
    return text.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


def _started(before: Row, event: RunStarted | TaskOpened, time: str) -> Row:
    if before:
        raise LedgerError(f"this has begun already: only begin_run records {event.kind}")
    return {
        **_kind(event),
        "workflow": storable(event.workflow),
        "digest": storable(event.digest),
        "agent": storable(event.agent),
        "inputs": canonical_json(event.inputs),
        "started_at": time,
        "finished_at": None,
        "exit_code": None,
        "reason": "",
        "dropped": 0,
    }


DROPPED = {ValueKind.INPUTS: 1, ValueKind.OUTPUTS: 2}
"""Which bit of `run.dropped` says that values are gone."""


def _values_dropped(before: Row, event: ValuesDropped) -> Row:
    if before["finished_at"] is None or before["state"] in RESUMABLE:
        raise IllegalTransition("only of what has ended for good are values dropped")
    already = before["dropped"]
    assert isinstance(already, int)
    for each in event.values:
        already |= DROPPED[ValueKind(each)]
    return {"dropped": already, **({"inputs": "{}"} if ValueKind.INPUTS in event.values else {})}


def _kind(event: RunStarted | TaskOpened) -> Row:
    """What runs and tasks tell differently."""
    match event:
        case RunStarted():
            return {
                "trigger": storable(event.trigger),
                "steps": canonical_json(event.steps),
                "state": RunState.RUNNING.value,
                "task": storable(event.task) or None,
                "retry_of": storable(event.retry_of) or None,
                "deadline": None,
                "idle": None,
            }
        case TaskOpened():
            return {
                "trigger": "task",
                "steps": canonical_json(event.tools),
                "state": TaskState.OPEN.value,
                "task": event.task,
                "retry_of": None,
                "deadline": time_to_text(event.deadline),
                "idle": event.idle,
            }


def _task_moved(before: Row, event: TaskCalled | TaskClosed, time: str) -> Row:
    if before.get("state") != TaskState.OPEN.value:
        raise IllegalTransition("this task is closed")
    if isinstance(event, TaskCalled):
        return {}
    return {"state": TaskState.CLOSED.value, "finished_at": time, "reason": storable(event.reason)}


def _run_finished(before: Row, event: RunFinished, time: str) -> Row:
    if before.get("state") == RunState.INTERRUPTED.value:
        raise IllegalTransition("this run was interrupted: it must be resumed before it can end in another way")
    if before.get("state") == RunState.WAITING.value and event.state is not RunState.CANCELLED:
        raise IllegalTransition("this run waits: it can be cancelled, or must be resumed before it can end")
    return {
        "state": event.state.value,
        "finished_at": time,
        "exit_code": int(event.exit_code),
        "reason": storable(event.reason),
    }


def _run_resumed(before: Row) -> Row:
    if before.get("state") not in RESUMABLE:
        raise IllegalTransition("only a run that was interrupted, or waits, can be resumed")
    return {"state": RunState.RUNNING.value, "finished_at": None, "exit_code": None, "reason": ""}


def _interrupted(steps: Mapping[str, Row]) -> dict[str, Row]:
    """The steps that were running when their run was interrupted."""
    running = StepState.RUNNING.value
    return {
        name: {**row, "state": StepState.INTERRUPTED.value} for name, row in steps.items() if row["state"] == running
    }


def _step(present: RunRows, event: AttemptStarted | AttemptFinished | StepFinished, time: str) -> Row:
    before = present.steps.get(event.step) or _new_step(present.run, event.step)
    match event:
        case AttemptStarted():
            return {
                **before,
                "state": StepState.RUNNING.value,
                "attempts": event.attempt,
                "step_key": storable(event.step_key),
                "action": storable(event.action),
                "started_at": before["started_at"] or time,
                "finished_at": None,
                "reason": "",
            }
        case AttemptFinished():
            return {**before, "reason": storable(event.reason)}
        case StepFinished():
            return {
                **before,
                "state": event.state.value,
                "finished_at": time,
                "reason": storable(event.reason),
                "outputs": canonical_json(event.outputs),
            }


def _step_waits(present: RunRows, event: ApprovalRequested) -> Row:
    before = present.steps.get(event.step) or _new_step(present.run, event.step)
    reason = f"waits for the approval {event.approval_id}"
    return {**before, "state": StepState.WAITING.value, "finished_at": None, "reason": storable(reason)}


def _new_step(run: Row, step: str) -> Row:
    return {
        "step": step,
        "state": StepState.RUNNING.value,
        "attempts": 0,
        "step_key": "",
        "action": "",
        "started_at": None,
        "finished_at": None,
        "reason": "",
        "outputs": "null",
    }


def _lease_requested(present: RunRows, event: LeaseRequested, time: str) -> Row:
    before = present.leases.get(event.lease_id)
    check_transition(event.lease_id, None if before is None else LeaseState(str(before["state"])), event.to)
    step = present.steps.get(event.step, {})
    return {
        "lease_id": event.lease_id,
        "workflow": present.run["workflow"],
        "agent": present.run["agent"],
        "step": declared_step(event.step),
        "attempt": event.attempt,
        "step_key": storable(event.step_key) or step.get("step_key", ""),
        "grant": storable(event.grant),
        "grant_kind": storable(event.grant_kind),
        "resource": storable(event.resource),
        "scope": canonical_json(event.scope),
        "state": event.to.value,
        "ttl": event.ttl,
        "requested_at": time,
        "issued_at": None,
        "expires_at": None,
        "closed_at": None,
        "vault_lease_id": "",
        "accessor": "",
        "subject": "",
        "reason": "",
        "revoking_since": None,
        "failed_tries": 0,
        "last_try_at": None,
    }


def _lease_moved(before: Row | None, event: LeaseEvent, time: str) -> Row:
    """The row after any event of a lease but the first."""
    state = None if before is None else LeaseState(str(before["state"]))
    check_transition(event.lease_id, state, event.to)
    assert before is not None, "check_transition lets only a request be the first"
    # A second issuance would overwrite Vault's handle of the first one, and a renewal needs an issuance.
    if isinstance(event, LeaseIssued | LeaseRenewed) and isinstance(event, LeaseIssued) == (state is LeaseState.ISSUED):
        raise IllegalTransition(f"lease {event.lease_id}: {state} does not allow {event.kind}")
    closed_at = time if event.to in FINAL else None
    return {**before, "state": event.to.value, "closed_at": closed_at, **_lease_changes(before, event, time)}


def _lease_changes(before: Row, event: LeaseEvent, time: str) -> Row:
    match event:
        case LeaseIssued():
            return {
                "ttl": event.ttl,
                "issued_at": time,
                "expires_at": time_to_text(event.expires_at),
                "vault_lease_id": storable(event.vault_lease_id),
                "accessor": storable(event.accessor),
                "subject": storable(event.subject),
            }
        case LeaseRenewed():
            return {"ttl": event.ttl, "expires_at": time_to_text(event.expires_at)}
        case LeaseDenied() | LeaseFailed():
            return {"reason": storable(event.reason)}
        case LeaseRevoking():
            return {"reason": storable(event.reason), "revoking_since": before["revoking_since"] or time}
        case LeaseRevocationFailed():
            return {
                "reason": storable(event.error),
                "revoking_since": before["revoking_since"] or time,
                "failed_tries": int(before["failed_tries"] or 0) + 1,
                "last_try_at": time,
            }
        case LeaseVaultRevoked():
            return {"reason": VAULT_REVOKED}
        case LeaseLoginTried():
            return {"reason": STILL_WORKS} if event.refused is False else {}
        case LeaseRevoked() | LeaseExpired():
            return {"reason": ""}
        case LeaseEnded():
            until = event.valid_until
            return {"reason": f"valid until {time_to_text(until) if until else 'its owner changes it'}"}
        case LeaseRequested():
            raise LedgerError("a request opens a lease and does not move it")
        case _:
            assert_never(event)
