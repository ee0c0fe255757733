"""`orchestrator tasks`: what agents have opened, what they called in it, and closing it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import options
from orchestrator.errors import ExitCode, UnknownTask
from orchestrator.ledger.states import TaskState

if TYPE_CHECKING:
    from orchestrator.ledger.types import LedgerReader, TaskRecord

app = typer.Typer(
    help="What agents have opened, and what they called in it.", no_args_is_help=True, rich_markup_mode=None
)


def register(program: typer.Typer) -> None:
    """Add the group of commands."""
    program.add_typer(app, name="tasks")


TaskId = Annotated[str, typer.Argument(metavar="TASK", help="The id of the task.")]


@app.command("list")
def list_tasks(
    agent: Annotated[str | None, typer.Option(help="Only of this agent.")] = None,
    state: Annotated[TaskState | None, typer.Option(help="Only in this state.")] = None,
    limit: options.Limit = 50,
    as_json: options.Json = False,
) -> None:
    """List tasks, newest first."""
    from orchestrator.cli.connect import ledger_reader
    from orchestrator.cli.display.json_output import print_json

    with ledger_reader() as reader:
        found = reader.tasks(agent=agent, state=state, limit=limit)
    if as_json:
        print_json(found)
    else:
        _print_tasks(found)


@app.command("show")
def show(task: TaskId, as_json: options.Json = False) -> None:
    """Show one task: who opened it, for what, its calls, what they hold, and its history."""
    from orchestrator.cli.connect import ledger_reader
    from orchestrator.cli.display.json_output import print_json
    from orchestrator.cli.display.task_view import TaskStory, print_story

    with ledger_reader() as reader:
        story = TaskStory.read(reader, _record(reader, task))
    if as_json:
        print_json(story)
    else:
        print_story(story)


@app.command("close")
def close(
    task: TaskId,
    reason: Annotated[str, typer.Option(help="Why, for the record.")] = "closed by an operator",
    as_json: options.Json = False,
) -> None:
    """Close a task: nothing can be called in it any more, and what its calls hold is taken back.

    The processes that carry the calls out do that; it is waited for. The exit code is 6 while it is not confirmed.
    """
    import asyncio

    from orchestrator.cli.connect import open_store, operator
    from orchestrator.cli.display.json_output import print_json
    from orchestrator.cli.display.terminal import console
    from orchestrator.clock import SystemClock
    from orchestrator.tasks.closing import close_task
    from orchestrator.tasks.reach import Reach

    with open_store() as ledger:
        was_open = _record(ledger, task).state is TaskState.OPEN
        reach = Reach.of_ledger(ledger, SystemClock())
        confirmed = asyncio.run(close_task(reach, task, by=operator(), reason=reason))
    if as_json:
        print_json({"task": task, "was_open": was_open, "confirmed": confirmed})
    else:
        said = "is closed" if was_open else "was closed already"
        rest = "nothing of it is left" if confirmed else "not everything is confirmed gone yet"
        console().print(f"{task} {said}; {rest}", markup=False, highlight=False)
    if not confirmed:
        raise typer.Exit(int(ExitCode.UNCONFIRMED))


def _record(reader: LedgerReader, task: str) -> TaskRecord:
    record = reader.task(task)
    if record is None:
        raise UnknownTask(f"no task {task} is in the ledger", hint="`orchestrator tasks list` shows those that are")
    return record


def _print_tasks(found: Sequence[TaskRecord]) -> None:
    from orchestrator.cli.display.listing import print_line, print_list
    from orchestrator.cli.display.terminal import local

    if not found:
        print_line("no tasks")
        return
    rows = [
        (task.task_id, task.workflow, task.agent, task.state.value, local(task.opened_at), local(task.deadline))
        for task in found
    ]
    print_list(("TASK", "TYPE", "AGENT", "STATE", "OPENED", "DEADLINE"), rows, fold=("TYPE", "AGENT"))
