"""What happens in runs, as log records with the ids of run, step and lease. Inputs and outputs are left out."""

from __future__ import annotations

import logging

from orchestrator.ledger.events import (
    AttemptFinished,
    AttemptWaits,
    Event,
    LeaseDenied,
    LeaseFailed,
    LeaseRevocationFailed,
    OrphansSwept,
    RunFinished,
    RunStarted,
    StepFinished,
)
from orchestrator.ledger.storage.times import time_to_text

log = logging.getLogger("orchestrator.run")

LOGGED_FIELDS = ("workflow", "trigger", "digest", "step", "attempt", "lease_id", "grant", "grant_kind", "state")
_TOLD = (AttemptWaits, RunStarted, RunFinished, StepFinished)
_BAD = (LeaseDenied, LeaseFailed, LeaseRevocationFailed, OrphansSwept)


def log_event(run_id: str, event: Event) -> None:
    """Log one event: runs and steps at INFO, what went wrong with a lease at WARNING, the rest at DEBUG."""
    waits = isinstance(event, AttemptFinished) and event.retry_at is not None
    told = waits or isinstance(event, _TOLD)
    level = logging.WARNING if isinstance(event, _BAD) else logging.INFO if told else logging.DEBUG
    if not log.isEnabledFor(level):
        return
    fields: dict[str, object] = {"run": run_id, "event": event.kind}
    for name in LOGGED_FIELDS:
        value = getattr(event, name, None)
        if value not in (None, ""):
            fields[name.removesuffix("_id")] = str(value) if isinstance(value, str) else value
    reason = getattr(event, "reason", "") or getattr(event, "error", "")
    if isinstance(event, AttemptFinished) and event.retry_at is not None:
        reason += f"; tried again at {time_to_text(event.retry_at)}"
    words = " ".join(str(fields[name]) for name in ("workflow", "step", "lease", "state") if name in fields)
    log.log(level, "%s %s %s%s", event.kind, run_id, words, f": {reason}" if reason else "", extra=fields)
