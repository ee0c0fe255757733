"""Workflows from a Python program: read, planned and run as the command line does it.

    from orchestrator import load_workflow, plan, run_workflow

Settings are those of the environment, as for the command (`orchestrator.settings.Settings`), unless others are given.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.ledger.events import Event
    from orchestrator.planning.plan import Plan
    from orchestrator.runs.types import RunOutcome, RunRequest
    from orchestrator.settings import Settings
    from orchestrator.workflow.loader import LoadedWorkflow

Observe = Callable[[str, datetime, "Event"], None]
"""Told of every event, once it is on record: run id, time, event. It must be quick: the event loop waits for it."""


def load_workflow(path: str | Path) -> LoadedWorkflow:
    """Read a workflow file. Raises InvalidWorkflow with all that is wrong with it, UsageError if it cannot be read."""
    from orchestrator.actions.catalog import catalog
    from orchestrator.workflow.loader import load

    return load(Path(path), actions=catalog)


def plan(
    workflow: LoadedWorkflow | str | Path,
    inputs: Mapping[str, Any] | None = None,
    *,
    agent: str = "",
    endpoints: Mapping[str, str] | None = None,
) -> Plan:
    """What each step will be allowed to do, and what the policy will be asked. Nothing is asked of anybody.

    `inputs` that are not given are left out; `agent` is who would call the tools of a workflow that has some.
    Raises InvalidWorkflow, and UsageError for inputs that do not fit.
    """
    from orchestrator.actions.catalog import action
    from orchestrator.planning.plan import build
    from orchestrator.workflow.inputs import bind_inputs

    loaded = _loaded(workflow)
    bound = bind_inputs(loaded.workflow, dict(inputs or {}), partial=True)
    return build(loaded, bound, action=action, endpoints=dict(endpoints or {}), agent=agent)


def run_workflow(
    workflow: LoadedWorkflow | str | Path,
    inputs: Mapping[str, Any] | None = None,
    *,
    run_id: str | None = None,
    trigger: str = "python",
    reason: str = "",
    settings: Settings | None = None,
    observe: Observe | None = None,
) -> RunOutcome:
    """Run a workflow to its end, and say how it came out: `outcome.check()` raises where it did not succeed.

    A `run_id` that is in the ledger already is gone on with, or its outcome told. In the main thread SIGINT, SIGTERM
    and SIGHUP end the run while it goes on, after it has revoked what it holds, as they do on the command line. Cannot
    be called where an event loop runs: there is `run_workflow_async`.

    Raises InvalidWorkflow and UsageError before anything is run, LedgerError where nothing can be recorded.
    """
    from orchestrator.assembly import run_workflow as in_this_process
    from orchestrator.configured.services import redactor, runner_config
    from orchestrator.settings import load_settings

    if threading.current_thread() is not threading.main_thread():
        return asyncio.run(
            run_workflow_async(
                workflow, inputs, run_id=run_id, trigger=trigger, reason=reason, settings=settings, observe=observe
            )
        )
    config = runner_config(settings or load_settings())
    request = _request(workflow, inputs, run_id, trigger, reason)
    return asyncio.run(in_this_process(config, request, redactor=redactor(), observer=_of(request, observe)))


async def run_workflow_async(
    workflow: LoadedWorkflow | str | Path,
    inputs: Mapping[str, Any] | None = None,
    *,
    run_id: str | None = None,
    trigger: str = "python",
    reason: str = "",
    settings: Settings | None = None,
    observe: Observe | None = None,
) -> RunOutcome:
    """As `run_workflow`, in the event loop of the program, whose signals are left alone.

    A cancellation of the task ends the run: what it holds is revoked, its end is recorded, and then CancelledError is
    raised.
    """
    from orchestrator.assembly import open_services
    from orchestrator.configured.services import redactor, runner_config
    from orchestrator.recovery.resumption import run_once
    from orchestrator.runs.types import Interruption
    from orchestrator.settings import load_settings
    from orchestrator.uninterrupted import is_cancelled

    request = _request(workflow, inputs, run_id, trigger, reason)
    config = runner_config(settings or load_settings())
    async with open_services(config, redactor=redactor(), observer=_of(request, observe)) as services:
        outcome = await run_once(services, request, Interruption())
    if is_cancelled():
        raise asyncio.CancelledError(f"run {outcome.run_id} {outcome.state.value}")
    return outcome


def _loaded(workflow: LoadedWorkflow | str | Path) -> LoadedWorkflow:
    return load_workflow(workflow) if isinstance(workflow, str | Path) else workflow


def _request(
    workflow: LoadedWorkflow | str | Path,
    inputs: Mapping[str, Any] | None,
    run_id: str | None,
    trigger: str,
    reason: str,
) -> RunRequest:
    from orchestrator.ledger.ids import chosen_run_id, new_run_id
    from orchestrator.runs.types import RunRequest
    from orchestrator.workflow.inputs import bind_inputs

    loaded = _loaded(workflow)
    loaded.refuse_tools("`orchestrator.client` opens tasks")
    chosen = new_run_id() if run_id is None else chosen_run_id(run_id, "`run_id`")
    bound = bind_inputs(loaded.workflow, dict(inputs or {}))
    return RunRequest(run_id=chosen, loaded=loaded, inputs=bound, trigger=trigger, reason=reason)


def _of(request: RunRequest, observe: Observe | None) -> Observe | None:
    """Told of this run only, and not of others that are closed beside it."""
    from orchestrator.telemetry.observed_ledger import only

    return None if observe is None else only(request.run_id, observe)
