"""What the ledger and policies see as the cause of a run that a service of ours started by itself."""

from __future__ import annotations

TRIGGER_SCHEDULE = "schedule"
"""A scheduled run."""
TRIGGER_REQUEST = "trigger"
"""A run that a person asked the scheduler for."""
TRIGGER_RETRY = "retry"
"""A run that goes on from where another one failed, whatever had started that."""

SERVICE_TRIGGERS = frozenset({TRIGGER_SCHEDULE, TRIGGER_REQUEST})
"""Runs that `serve` and `worker` go on with by themselves, as they do with those of the queue."""
