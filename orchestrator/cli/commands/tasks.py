"""`orchestrator tasks`: what agents have opened, what they called in it, and closing it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import options
from orchestrator.cli.lookup import completion
from orchestrator.errors import ExitCode, UnknownTask, UsageError
from orchestrator.ledger.states import IdKind, RunState, TaskState

if TYPE_CHECKING:
    from orchestrator.ledger.types import LeaseFilter, LedgerReader, RunRecord, TaskRecord

_MOST = 100_000

app = typer.Typer(
    help="What agents have opened, and what they called in it.", no_args_is_help=True, rich_markup_mode=None
)


def register(program: typer.Typer) -> None:
    """Add the group of commands."""
    program.add_typer(app, name="tasks")


TaskId = Annotated[
    str,
    typer.Argument(
        metavar="TASK", help="The id of the task, or the beginning of it.", autocompletion=completion.task_ids
    ),
]


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
    """Show one task: who opened it, for what, its budgets, its calls, what they hold, and its history."""
    from orchestrator.cli.connect import open_store
    from orchestrator.cli.display.json_output import print_json
    from orchestrator.cli.display.task_view import print_story
    from orchestrator.clock import SystemClock
    from orchestrator.presentation.tasks import TaskStory
    from orchestrator.runs.recorded_workflow import recorded_workflow

    with open_store() as ledger:
        record = _record(ledger, task)
        try:
            tools, unknown = recorded_workflow(ledger.runners, record.digest, record.workflow).workflow.tools, ""
        except UsageError as error:  # the file is not there, not as recorded, or needs an extension that is not here
            tools, unknown = {}, error.message
        story = TaskStory.read(ledger, record, tools, unknown)
    if as_json:
        print_json(story)
    else:
        print_story(story, SystemClock().now())


@app.command("close")
def close(
    task: TaskId,
    reason: Annotated[str, typer.Option(help="Why, for the record.")] = "closed by an operator",
    as_json: options.Json = False,
) -> None:
    """Close a task: nothing can be called in it any more, and what its calls hold is taken back.

    The processes that carry the calls out do that; it is waited for. The exit code is 6 while it is not confirmed.
    """
    from orchestrator.cli import interruption
    from orchestrator.cli.connect import open_store, operator
    from orchestrator.cli.display.json_output import print_json
    from orchestrator.cli.display.terminal import console
    from orchestrator.clock import SystemClock
    from orchestrator.tasks.closing import close_task
    from orchestrator.tasks.reach import Reach

    with open_store() as ledger:
        record = _record(ledger, task)
        task, was_open = record.task_id, record.state is TaskState.OPEN
        reach = Reach.of_ledger(ledger, SystemClock())
        confirmed = interruption.run(lambda: close_task(reach, task, by=operator(), reason=reason))
        left = Left() if confirmed else Left.of_task(ledger, task)
    if as_json:
        print_json({"task": task, "was_open": was_open, "confirmed": confirmed, "left": left})
    else:
        said = "is closed" if was_open else "was closed already"
        console().print(f"{task} {said}; {left}", markup=False, highlight=False)
    if not confirmed:
        raise typer.Exit(int(ExitCode.UNCONFIRMED))


@dataclass(frozen=True, slots=True)
class Left:
    """What is not confirmed gone: the ids of runs that go on, and of leases that are open."""

    runs: Sequence[str] = ()
    leases: Sequence[str] = ()

    @classmethod
    def of_task(cls, reader: LedgerReader, task: str) -> Left:
        """Of a closed task."""
        from orchestrator.ledger.types import LeaseFilter

        return cls._of(reader, reader.calls(task), LeaseFilter(task=task))

    @classmethod
    def of_agent(cls, reader: LedgerReader, agent: str) -> Left:
        """Of an agent that is cut off."""
        from orchestrator.ledger.types import LeaseFilter

        return cls._of(reader, reader.under_way(agent), LeaseFilter(agent=agent))

    @classmethod
    def _of(cls, reader: LedgerReader, runs: Sequence[RunRecord], leases: LeaseFilter) -> Left:
        from orchestrator.ledger.lease import OPEN

        found = reader.leases(replace(leases, states=OPEN, limit=_MOST))
        going_on = tuple(run.run_id for run in runs if run.state in (RunState.RUNNING, RunState.WAITING))
        return cls(going_on, tuple(lease.lease_id for lease in found))

    def __str__(self) -> str:
        if not self.runs and not self.leases:
            return "nothing of it is left"
        return "\n".join(
            (
                "not everything is confirmed gone yet:",
                *(f"  {each} goes on" for each in self.runs),
                *(f"  {each} is open" for each in self.leases),
                "its processes go on with it, or recovery where they are dead: `orchestrator leases sweep`",
            )
        )


def _record(reader: LedgerReader, named: str) -> TaskRecord:
    from orchestrator.ledger.reading.id_lookup import whole_id

    record = reader.task(whole_id(reader, IdKind.TASK, named))
    if record is not None:
        return record
    task = whole_id(reader, IdKind.RUN, named)
    if (run := reader.run(task)) is None:
        raise UnknownTask(
            f"no task {named} is in the ledger",
            hint="`orchestrator tasks list` shows those that are; of an id four characters are enough, beside `task_`",
        )
    if run.task is None:
        raise UnknownTask(f"{task} is a run, not a task", hint=f"see `orchestrator runs show {task}`")
    raise UnknownTask(f"{task} is a call in the task {run.task}", hint=f"see `orchestrator tasks show {run.task}`")


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
