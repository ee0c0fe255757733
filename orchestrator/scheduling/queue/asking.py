"""What is put into the shared queue: a run with all that it takes to carry it out elsewhere, and no secret."""

from __future__ import annotations

from datetime import datetime

from orchestrator.errors import UsageError
from orchestrator.ledger.coordination.queue import QueuedRun
from orchestrator.runs.types import RunRequest
from orchestrator.secret import Secret


def queued(request: RunRequest, at: datetime) -> QueuedRun:
    """A run as it is put into the queue. Raises UsageError for secret inputs: the queue is not a place for secrets."""
    secret = [name for name, value in request.inputs.items() if isinstance(value, Secret)]
    if secret:
        raise UsageError(
            f"the secret input `{secret[0]}` cannot wait in the queue",
            hint="keep it in Vault and let the step have it through a grant of the kind `secret`",
        )
    return QueuedRun(
        run_id=request.run_id,
        workflow=request.loaded.workflow.name,
        digest=request.loaded.digest,
        inputs={name: value for name, value in request.inputs.items() if not isinstance(value, Secret)},
        trigger=request.trigger,
        queued_at=at,
        reason=request.reason,
        directory=request.loaded.directory,
        retry_of=request.retry.of,
    )
