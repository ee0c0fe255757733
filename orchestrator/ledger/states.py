"""How runs, steps, tasks and requests for approval stand."""

from __future__ import annotations

from enum import StrEnum


class RunState(StrEnum):
    """How a run stands. All but RUNNING and those that can be resumed are final."""

    RUNNING = "running"
    """Its process drives it."""
    SUCCEEDED = "succeeded"
    """Every step that was to succeed did."""
    FAILED = "failed"
    """A step failed, or the run took longer than its `timeout`."""
    REFUSED = "refused"
    """A policy or Vault refused a step."""
    CANCELLED = "cancelled"
    """Somebody, or a signal, ended it."""
    INTERRUPTED = "interrupted"
    """Its process died. Nobody drives it any more; `run.resumed` makes it `running` again."""
    WAITING = "waiting"
    """It can go on when somebody has agreed. Nobody drives it meanwhile; `run.resumed` makes it `running` again."""


RESUMABLE = frozenset({RunState.INTERRUPTED, RunState.WAITING})
"""Runs that nobody drives and that can go on."""


class StepState(StrEnum):
    """How a step, or one attempt at it, stands. All but RUNNING are final; SKIPPED never had an attempt."""

    RUNNING = "running"
    """It has begun."""
    SUCCEEDED = "succeeded"
    """It did what it is for."""
    FAILED = "failed"
    """Its last attempt failed."""
    REFUSED = "refused"
    """A policy or Vault refused it; nothing of it ran."""
    SKIPPED = "skipped"
    """Its condition was false, or something that it needs did not succeed."""
    CANCELLED = "cancelled"
    """It was ended because its run was."""
    INTERRUPTED = "interrupted"
    """It was running when its run was interrupted, and is tried again when that is resumed."""
    WAITING = "waiting"
    """Somebody has to agree before it gets credentials."""


class TaskState(StrEnum):
    """How a task stands. CLOSED is final."""

    OPEN = "open"
    """Tools can be called."""
    CLOSED = "closed"
    """No tool can be called any more; what was under way ends."""


class TaskEnd(StrEnum):
    """What ends a task that its agent has not closed."""

    DEADLINE = "deadline"
    """Its `duration` is over."""
    IDLE = "idle"
    """Nothing was called for as long as its `idle`."""
    CUT_OFF = "cut_off"
    """Its agent was revoked."""


class IdKind(StrEnum):
    """What an id is of. Calls are runs."""

    RUN = "run"
    TASK = "task"
    LEASE = "lease"
    APPROVAL = "approval"


class ApprovalState(StrEnum):
    """How a request for approval stands."""

    OPEN = "open"
    """People are asked."""
    APPROVED = "approved"
    """As many as it takes have agreed."""
    DENIED = "denied"
    """Somebody has refused."""
    EXPIRED = "expired"
    """Too few have agreed in time."""
    WITHDRAWN = "withdrawn"
    """Its run has ended, or asks for something else now."""
