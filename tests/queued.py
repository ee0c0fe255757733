"""Putting runs into the queue without a process of its own: starting one takes longer than what it would do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.actions.catalog import catalog
from orchestrator.clock import SystemClock
from orchestrator.ledger.ids import new_run_id
from orchestrator.ledger.opening import open_ledger
from orchestrator.queue.lanes import limits_of
from orchestrator.queue.opening import shared_queue
from orchestrator.queue.shared import SharedQueue
from orchestrator.runs.types import RunRequest
from orchestrator.scheduling.queue.asking import queued as queued_of
from orchestrator.workflow.inputs import bind_inputs
from orchestrator.workflow.loader import LoadedWorkflow, load


@contextmanager
def shared(ledger_url: str) -> Iterator[SharedQueue]:
    """The shared queue of a ledger."""
    with open_ledger(ledger_url, clock=SystemClock()) as ledger, shared_queue(ledger_url, ledger.queue) as queue:
        yield queue


def put(queue: SharedQueue, loaded: LoadedWorkflow, inputs: Mapping[str, Any] | None = None, **how: Any) -> str:
    """Put a run in; its id. `how` are the arguments of `SharedQueue.add`, and `run_id`."""
    run_id = how.pop("run_id", None) or new_run_id()
    bound = bind_inputs(loaded.workflow, inputs or {})
    request = RunRequest(run_id=run_id, loaded=loaded, inputs=bound, trigger="queue")
    entry = queued_of(request, SystemClock().now())
    assert queue.add(entry, workflow=loaded.text, limits=limits_of(loaded.workflow), **how)
    return run_id


def queued(ledger_url: str, path: Path) -> str:
    """What `queue add` does; the id of the run."""
    with shared(ledger_url) as queue:
        return put(queue, load(path, actions=catalog))
