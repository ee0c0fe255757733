"""How runs, steps, tasks and requests for approval stand."""

from __future__ import annotations

from enum import StrEnum


class RunState(StrEnum):
    """How a run stands. All but RUNNING and those that can be resumed are final."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    REFUSED = "refused"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"
    """Its process died. Nobody drives it any more; `run.resumed` makes it `running` again."""
    WAITING = "waiting"
    """It can go on when somebody has agreed. Nobody drives it meanwhile; `run.resumed` makes it `running` again."""


RESUMABLE = frozenset({RunState.INTERRUPTED, RunState.WAITING})
"""Runs that nobody drives and that can go on."""


class StepState(StrEnum):
    """How a step, or one attempt at it, stands. All but RUNNING are final; SKIPPED never had an attempt."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    REFUSED = "refused"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"
    """It was running when its run was interrupted, and is tried again when that is resumed."""
    WAITING = "waiting"
    """Somebody has to agree before it gets credentials."""


class TaskState(StrEnum):
    """How a task stands. CLOSED is final."""

    OPEN = "open"
    CLOSED = "closed"


class TaskEnd(StrEnum):
    """What ends a task that its agent has not closed."""

    DEADLINE = "deadline"
    IDLE = "idle"
    CUT_OFF = "cut_off"


class IdKind(StrEnum):
    """What an id is of. Calls are runs."""

    RUN = "run"
    TASK = "task"
    LEASE = "lease"
    APPROVAL = "approval"


class ApprovalState(StrEnum):
    """How a request for approval stands."""

    OPEN = "open"
    APPROVED = "approved"
    DENIED = "denied"
    EXPIRED = "expired"
    WITHDRAWN = "withdrawn"
    """Its run has ended, or asks for something else now."""
