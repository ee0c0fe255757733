"""Spans made of committed events: a run, its step attempts, their leases. Needs the extra `otel`.

Names, ids, kinds, states and resources are told: never inputs, outputs, reasons or credentials. A run's
trace id follows from its run id, so that what another process goes on with belongs to the same trace.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context

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
from orchestrator.ledger.lease import FINAL, LeaseState
from orchestrator.ledger.states import RunState, StepState
from orchestrator.ledger.task_events import TaskCalled, TaskClosed, TaskOpened

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_UNDONE = (StepState.SKIPPED, StepState.CANCELLED)

Attribute = str | int | bool


def trace_id_of(run_id: str) -> int:
    """The trace id of a run: the first 16 bytes of the SHA-256 of its id."""
    return int.from_bytes(hashlib.sha256(run_id.encode()).digest()[:16])


class RunTraceIds(RandomIdGenerator):
    """Gives the trace id of the run whose span is begun next."""

    trace_id: int | None = None

    def generate_trace_id(self) -> int:
        """128 bits: those of the run while it is begun, else random ones (W3C Trace Context, "trace-id")."""
        return super().generate_trace_id() if self.trace_id is None else self.trace_id


@dataclass(slots=True)
class _Attempt:
    span: Span
    leases: set[str] = field(default_factory=set)
    """Those that are not over."""
    finished: bool = False


@dataclass(slots=True)
class _Run:
    span: Span
    attempts: dict[tuple[str, int], _Attempt] = field(default_factory=dict)
    leases: dict[str, Span] = field(default_factory=dict)


class RunSpans:
    """Give `observe` every event that the ledger has taken. `ids` are those of the tracer's provider.

    Only runs that begin, are taken over or are resumed while this is watching have spans.
    """

    def __init__(self, tracer: Tracer, ids: RunTraceIds) -> None:
        self._tracer = tracer
        self._ids = ids
        self._runs: dict[str, _Run] = {}

    def observe(self, run_id: str, time: datetime, event: Event) -> None:
        """Begin, extend or end the span that the event is about."""
        if isinstance(event, RunStarted | RunTakenOver | RunResumed) and run_id not in self._runs:
            self._begin_run(run_id, time, event)
        run = self._runs.get(run_id)
        if run is None:
            return
        match event:
            case RunStarted() | TaskOpened() | TaskCalled() | TaskClosed():
                pass
            case RunTakenOver():
                _tell(run.span, "taken over", time, runner=event.runner)
            case RunResumed():
                _tell(run.span, "resumed", time, runner=event.runner)
            case AttemptWaits():
                if attempt := run.attempts.get((event.step, event.attempt)):
                    _tell(attempt.span, "waits", time, connection=event.connection)
            case AttemptStarted():
                self._begin_attempt(run, event, time)
            case Decided():
                if attempt := run.attempts.get((event.step, event.attempt)):
                    _tell(attempt.span, "decision", time, allow=event.allow, engine=event.engine)
            case ApprovalRequested() | ApprovalVoted() | ApprovalEnded():
                _tell(run.span, event.kind, time, step=event.step, approval=event.approval_id)
            case Notified():
                if attempt := run.attempts.get((event.step, event.attempt)):
                    _tell(attempt.span, "notice", time, to=event.to, delivered=not event.error)
            case RunNotified():
                _tell(run.span, "notice", time, to=event.to, delivered=not event.error)
            case LeaseRequested():
                self._begin_lease(run, event, time)
            case AttemptFinished():
                self._finish_attempt(run, event, time)
            case StepFinished():
                if event.state in _UNDONE:
                    _tell(run.span, f"step {event.state.value}", time, step=event.step)
            case LogRestarted():
                _tell(run.span, "log restarted", time, entries=event.size)
            case ValuesDropped():
                _tell(run.span, "values dropped", time, values=", ".join(event.values))
            case OrphansSwept():
                _tell(run.span, "swept", time, connection=event.connection, logins=len(event.roles))
            case RunFinished():
                self._end_run(run_id, run, event, time)
            case _:
                self._move_lease(run, event, time)

    def end_all(self, time: datetime) -> None:
        """End what is still open: what this process has seen of runs that are gone on with elsewhere."""
        for run_id, run in list(self._runs.items()):
            self._end_children(run, time)
            run.span.end(_nanoseconds(time))
            del self._runs[run_id]

    def _begin(self, name: str, time: datetime, parent: Span | None, **attributes: Attribute) -> Span:
        return self._tracer.start_span(
            name,
            context=set_span_in_context(parent) if parent is not None else None,
            kind=SpanKind.INTERNAL,
            attributes=_named(attributes),
            start_time=_nanoseconds(time),
        )

    def _begin_run(self, run_id: str, time: datetime, event: RunStarted | RunTakenOver | RunResumed) -> None:
        about: dict[str, Attribute] = {"run": run_id}
        if isinstance(event, RunStarted):
            about |= {"workflow": event.workflow, "agent": event.agent, "trigger": event.trigger}
            about |= {"task": event.task} if event.task else {}
        self._ids.trace_id = trace_id_of(run_id)
        try:
            self._runs[run_id] = _Run(self._begin(f"run {about.get('workflow', '')}".strip(), time, None, **about))
        finally:
            self._ids.trace_id = None

    def _begin_attempt(self, run: _Run, event: AttemptStarted, time: datetime) -> None:
        about: dict[str, Attribute] = {"step": event.step, "attempt": event.attempt, "action": event.action}
        span = self._begin(f"step {event.step}", time, run.span, **about, step_key=event.step_key)
        run.attempts[event.step, event.attempt] = _Attempt(span)

    def _begin_lease(self, run: _Run, event: LeaseRequested, time: datetime) -> None:
        attempt = run.attempts.get((event.step, event.attempt))
        if attempt is not None:
            attempt.leases.add(event.lease_id)
        run.leases[event.lease_id] = self._begin(
            f"lease {event.grant}",
            time,
            run.span if attempt is None else attempt.span,
            lease=event.lease_id,
            step=event.step,
            grant=event.grant,
            grant_kind=event.grant_kind,
            resource=event.resource,
            ttl=event.ttl,
        )

    def _move_lease(
        self,
        run: _Run,
        event: LeaseIssued
        | LeaseRenewed
        | LeaseRevoking
        | LeaseRevocationFailed
        | LeaseVaultRevoked
        | LeaseLoginTried
        | LeaseDenied
        | LeaseFailed
        | LeaseRevoked
        | LeaseExpired
        | LeaseEnded,
        time: datetime,
    ) -> None:
        span = run.leases.get(event.lease_id)
        if span is None:  # it was issued by the process before this one
            span = run.leases[event.lease_id] = self._begin("lease", time, run.span, lease=event.lease_id)
        _tell(span, event.kind.removeprefix("lease."), time)
        span.set_attributes(_named({"state": event.to.value}))
        if event.to not in FINAL:
            return
        if event.to in (LeaseState.DENIED, LeaseState.FAILED):
            span.set_status(Status(StatusCode.ERROR))
        del run.leases[event.lease_id]
        span.end(_nanoseconds(time))
        for attempt in run.attempts.values():
            attempt.leases.discard(event.lease_id)
        self._end_attempts(run, time)

    def _finish_attempt(self, run: _Run, event: AttemptFinished, time: datetime) -> None:
        attempt = run.attempts.get((event.step, event.attempt))
        if attempt is None:
            return
        attempt.finished = True
        _tell(attempt.span, "finished", time)
        attempt.span.set_attributes(_named({"state": event.state.value, "error_kind": event.error_kind}))
        if event.state is not StepState.SUCCEEDED:
            attempt.span.set_status(Status(StatusCode.ERROR))
        self._end_attempts(run, time)

    def _end_attempts(self, run: _Run, time: datetime) -> None:
        """An attempt is over when it has finished and its leases are."""
        for key, attempt in list(run.attempts.items()):
            if attempt.finished and not attempt.leases:
                attempt.span.end(_nanoseconds(time))
                del run.attempts[key]

    def _end_children(self, run: _Run, time: datetime) -> None:
        for span in (*run.leases.values(), *(attempt.span for attempt in run.attempts.values())):
            span.end(_nanoseconds(time))
        run.leases.clear()
        run.attempts.clear()

    def _end_run(self, run_id: str, run: _Run, event: RunFinished, time: datetime) -> None:
        self._end_children(run, time)
        run.span.set_attributes(_named({"state": event.state.value, "exit_code": event.exit_code}))
        if event.state is not RunState.SUCCEEDED:
            run.span.set_status(Status(StatusCode.ERROR))
        run.span.end(_nanoseconds(time))
        del self._runs[run_id]


def _tell(span: Span, what: str, time: datetime, **attributes: Attribute) -> None:
    span.add_event(what, _named(attributes), timestamp=_nanoseconds(time))


def _named(attributes: dict[str, Attribute]) -> dict[str, Attribute]:
    return {f"orchestrator.{name}": value for name, value in attributes.items() if value != ""}


def _nanoseconds(time: datetime) -> int:
    return (time - _EPOCH) // _MICROSECOND * 1000
