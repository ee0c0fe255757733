"""Putting runs into the queue without a process of its own: starting one takes longer than what it would do."""

from __future__ import annotations

from pathlib import Path

from orchestrator.actions.catalog import catalog
from orchestrator.clock import SystemClock
from orchestrator.ledger.ids import new_run_id
from orchestrator.ledger.opening import open_ledger
from orchestrator.runs.types import RunRequest
from orchestrator.scheduling.queue import enqueue
from orchestrator.workflow.inputs import bind_inputs
from orchestrator.workflow.loader import load


def queued(ledger_url: str, path: Path) -> str:
    """What `queue add` does; the id of the run."""
    loaded = load(path, actions=catalog)
    inputs = bind_inputs(loaded.workflow, {})
    request = RunRequest(run_id=new_run_id(), loaded=loaded, inputs=inputs, trigger="queue")
    clock = SystemClock()
    with open_ledger(ledger_url, clock=clock) as ledger:
        assert enqueue(ledger.queue, request, clock)
    return request.run_id
