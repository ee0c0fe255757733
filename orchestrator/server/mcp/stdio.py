"""One task over standard input and output: it is open for as long as the client is there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from mcp.server.stdio import stdio_server

from orchestrator.agents.authentication import Caller
from orchestrator.assembly import RunnerConfig, interruptible_services
from orchestrator.errors import ExitCode
from orchestrator.recovery.takeover import Recovery
from orchestrator.redaction.redactor import Redactor
from orchestrator.runs.types import Services
from orchestrator.server.api.service import closing
from orchestrator.server.maintenance import Maintenance, maintained
from orchestrator.server.mcp.door import Context, Door, Place
from orchestrator.server.mcp.handles import STDIO
from orchestrator.server.mcp.pipes import Lines, Outlet, claimed
from orchestrator.tasks.desk import TaskDesk
from orchestrator.telemetry.metrics import Metrics
from orchestrator.telemetry.observed_ledger import Observer
from orchestrator.uninterrupted import completed, to_the_end
from orchestrator.workflow.loader import LoadedWorkflow
from orchestrator.workflow.models.workflow import Workflow

log = logging.getLogger(__name__)

_LAST_WORDS_SECONDS = 0.5
"""How long what is told at the end may take."""

_RECOVERY_SECONDS = 15.0
"""Between two looks for what processes left that are dead, such as the one before this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StdioTask:
    """What is opened. The agent is whoever runs the process: nobody else can reach it."""

    loaded: LoadedWorkflow
    caller: Caller
    inputs: Mapping[str, Any]
    """Bound; none is secret."""
    reason: str = ""
    hand_over: bool = False


@dataclass(frozen=True, slots=True)
class OneTask:
    """The task of this process. The number of a request is its client's own, and never used twice."""

    task: StdioTask
    task_id: str
    over: str = "It cannot be opened again from here: whoever runs this server has to start it anew."

    def workflow(self, context: Context) -> Workflow:
        """The file that was given."""
        return self.task.loaded.workflow

    async def place(self, context: Context, *, ended: str = "") -> Place:
        """Always the same task."""
        return Place(self.task.caller, self.task_id, STDIO, f"mcp {context.request_id!r}", lasting=True)


async def serve_stdio(
    config: RunnerConfig, task: StdioTask, *, redactor: Redactor, observer: Observer | None = None
) -> ExitCode:
    """Open the task, serve its tools until the client is gone, and close it.

    UNCONFIRMED: not everything is gone for certain. Raises what opening a task raises, and Interrupted after a signal,
    when the task is closed.
    """
    async with interruptible_services(config, redactor=redactor, observer=observer) as (services, interruptions):
        return await interruptions.carry_out(_serve(services, task))


async def _serve(services: Services, task: StdioTask) -> ExitCode:
    name = task.loaded.workflow.name
    desk = TaskDesk(services, {name: task.loaded})
    opened, cancelled = await completed(desk.open(task.caller, name, task.inputs, reason=task.reason, address=STDIO))
    log.info("task %s is open until %s", opened.task_id, opened.deadline.isoformat(), extra={"task": opened.task_id})

    async def close() -> bool:
        gone = await desk.close(task.caller, opened.task_id, "the client is gone")
        await desk.aclose("the client is gone", seconds=0)
        return gone

    answering = asyncio.create_task(_answer(Door(desk, OneTask(task, opened.task_id), task.hand_over)))
    try:
        async with maintained([closing(services), _recovery(services)], Metrics()):
            if cancelled is not None:
                raise cancelled
            await asyncio.wait({answering})
            answering.result()
    finally:
        confirmed = await to_the_end(close())  # whatever the client reads, or does not
        await to_the_end(_ended(answering))
    return ExitCode.DONE if confirmed else ExitCode.UNCONFIRMED


async def _ended(answering: asyncio.Task[None]) -> None:
    """Once is not enough: the SDK catches cancellations for last words to a client that may not read any."""
    while not answering.done():
        answering.cancel()
        await asyncio.wait({answering}, timeout=_LAST_WORDS_SECONDS)
    if not answering.cancelled():
        answering.exception()  # told by whoever waits for it, or that a pipe broke, which is of no interest any more


async def _answer(door: Door) -> None:
    server = door.server()
    with claimed() as (reading, writing):
        lines, outlet = Lines(reading), Outlet(writing)
        # It iterates over the one, and writes to and flushes the other: nothing else of AsyncFile is used.
        async with stdio_server(cast(Any, lines), cast(Any, outlet)) as (read_stream, write_stream):
            await server.run(read_stream, write_stream, server.create_initialization_options())


def _recovery(services: Services) -> Maintenance:
    async def recover() -> None:
        for found in await Recovery(services).once():
            log.warning("run %s of %s: %s", found.run_id, found.dead, found.verdict.value, extra={"run": found.run_id})

    return _RECOVERY_SECONDS, recover
