"""How runs and steps stand."""

from __future__ import annotations

from enum import StrEnum


class RunState(StrEnum):
    """How a run stands. All but RUNNING are final."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    REFUSED = "refused"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"
    """Its process died. Nobody drives it any more; `run.resumed` makes it `running` again."""


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
