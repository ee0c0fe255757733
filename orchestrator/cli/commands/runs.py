"""`orchestrator runs`: what was run, and what happened in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import options
from orchestrator.errors import ExitCode, UnknownRun, UsageError
from orchestrator.ledger.states import RunState

if TYPE_CHECKING:
    from orchestrator.ledger.types import Examined, LedgerReader, RunRecord

app = typer.Typer(help="What was run, and what happened in it.", no_args_is_help=True, rich_markup_mode=None)


def register(program: typer.Typer) -> None:
    """Add the group of commands."""
    program.add_typer(app, name="runs")


RunId = Annotated[str, typer.Argument(metavar="RUN", help="The id of the run.")]


@app.command("list")
def list_runs(
    workflow: Annotated[str | None, typer.Option(help="Only runs of this workflow.")] = None,
    state: Annotated[RunState | None, typer.Option(help="Only runs in this state.")] = None,
    limit: options.Limit = 50,
    as_json: options.Json = False,
) -> None:
    """List runs, newest first."""
    from orchestrator.cli.connect import ledger_reader
    from orchestrator.cli.display.json_output import print_json

    with ledger_reader() as reader:
        found = reader.runs(workflow=workflow, state=state, limit=limit)
    if as_json:
        print_json(found)
    else:
        _print_runs(found)


@app.command("show")
def show(
    run: RunId,
    everything: Annotated[
        bool, typer.Option("--all", help="Also the logins that the orchestrator made to sweep and to set row limits.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Show one run: its steps, its leases and its history in order. With --json always all of it."""
    from orchestrator.cli.connect import ledger_reader
    from orchestrator.cli.display.json_output import print_json
    from orchestrator.cli.display.run_view import RunStory, print_story

    with ledger_reader() as reader:
        story = RunStory.read(reader, _record(reader, run))
    if as_json:
        print_json(story)
    else:
        print_story(story, everything=everything)


@app.command("verify")
def verify(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="The id of the run, call or task; without it, all of them.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Check that what the ledger holds is what was recorded: the events, and the tables that lists are made from.

    No event was changed, removed or added, and runs, tasks, steps and leases are shown as their events say. Not
    looked at is what is no history: processes, fences, the queue, what the scheduler remembers.
    """
    from orchestrator.cli.connect import ledger_reader
    from orchestrator.cli.display.json_output import print_json
    from orchestrator.cli.display.terminal import console
    from orchestrator.ledger.ids import TASK_PREFIX

    checked, tasks, wrong = 0, 0, []
    with ledger_reader() as reader:
        for found in [reader.examine(run)] if run is not None else reader.examine_all():
            checked += bool(found.run_id)
            tasks += found.run_id.startswith(TASK_PREFIX)
            if not found.whole:
                wrong.append(found)
                for line in _told(found) if not as_json else ():
                    console().print(line, style="red", markup=False)
    if as_json and run is not None:
        print_json(_examined_json(found))
    elif as_json:
        print_json({"runs": checked, "whole": not wrong, "not_whole": [_examined_json(each) for each in wrong]})
    elif not wrong:
        about = f"{run}: the history is" if run is not None else f"{_counted(checked, tasks)}: all histories are"
        console().print(f"{about} whole, and the tables say the same")
    elif run is None:
        console().print(f"{_counted(checked, tasks)}: {len(wrong)} are not as they were recorded", style="red")
    if wrong:
        raise typer.Exit(int(ExitCode.STEP_FAILED))


def _counted(histories: int, tasks: int) -> str:
    """Calls are runs, and tasks are told apart from them."""
    runs = f"{histories - tasks} runs"
    return runs if not tasks else f"{runs} and {tasks} {'task' if tasks == 1 else 'tasks'}"


def _examined_json(found: Examined) -> dict[str, object]:
    differences = [dataclasses.asdict(each) for each in found.differences]
    broken = found.first_broken_event
    return {"run": found.run_id, "whole": found.whole, "first_broken_event": broken, "differences": differences}


def _told(found: Examined) -> Iterator[str]:
    about = found.run_id or "(no run)"
    if found.first_broken_event is not None:
        yield f"{about}: the history is broken from event {found.first_broken_event} on"
    for each in found.differences:
        yield f"{about}: {each}"


@app.command("resume")
def resume(
    run: RunId,
    inputs_file: options.InputsFile = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing unless something went wrong.")] = False,
    as_json: options.Json = False,
    grace: options.Grace = None,
    no_wait: options.NoWait = False,
) -> None:
    """Go on with a run that was interrupted or waits: finished steps are not run again. Secret inputs are needed."""
    from orchestrator.assembly import resume_run
    from orchestrator.cli.commands.run import carry_out

    secrets = options.inputs_from(None, inputs_file)
    carry_out(
        lambda config, **how: resume_run(config, run, secrets, **how),
        run_id=run,
        quiet=quiet,
        as_json=as_json,
        grace=grace,
        no_wait=no_wait,
    )


@app.command("cancel")
def cancel(
    run: RunId, reason: Annotated[str, typer.Option(help="Why, for the record.")] = "cancelled by an operator"
) -> None:
    """Ask the process that drives a run to cancel it: its steps are stopped and their credentials revoked.

    A run whose process is dead is ended by the next recovery, such as `orchestrator leases sweep`.
    """
    import asyncio

    from orchestrator.cli.connect import open_store
    from orchestrator.cli.display.terminal import console
    from orchestrator.clock import SystemClock
    from orchestrator.recovery.waiting import cancel_waiting

    with open_store() as ledger:
        record = _record(ledger, run)
        if record.state is RunState.WAITING:
            asyncio.run(cancel_waiting(ledger, ledger, ledger.approvals, run, reason, now=SystemClock().now()))
            console().print(f"{run} is cancelled: it waited, and nothing of it was open")
            return
        if record.state is not RunState.RUNNING:
            raise UsageError(f"run {run} has ended already: {record.state.value}")
        if not ledger.runners.request_cancel(run, reason):
            raise UsageError(f"nobody drives run {run}", hint="`orchestrator leases sweep` closes what it left")
    console().print(f"{run}: asked its process to cancel it; `orchestrator runs show {run}` tells when it has ended")


def _record(reader: LedgerReader, run: str) -> RunRecord:
    record = reader.run(run)
    if record is None and reader.task(run) is not None:
        raise UnknownRun(
            f"{run} is a task, not a run",
            hint=f"see `orchestrator tasks show {run}`; `orchestrator tasks close {run}` ends it",
        )
    if record is None:
        raise UnknownRun(
            f"no run {run} is in the ledger", hint="give the whole id; `orchestrator runs list` shows those that are"
        )
    return record


def _print_runs(found: Sequence[RunRecord]) -> None:
    from orchestrator.cli.display.listing import print_line, print_list, width
    from orchestrator.cli.display.terminal import local, took

    if not found:
        print_line("no runs")
        return
    rows = [
        (
            run.run_id,
            run.workflow,
            run.state.value,
            local(run.started_at),
            took(run.started_at, run.finished_at),
            run.task or "-",
        )
        for run in found
    ]
    columns = ("RUN", "WORKFLOW", "STATE", "STARTED", "TOOK", "TASK")
    wide = width()
    of_tasks = wide >= 130 and any(run.task for run in found)
    kept = 4 if wide < 100 else len(columns) if of_tasks else 5
    print_list(columns[:kept], [row[:kept] for row in rows], fold=("WORKFLOW",))
