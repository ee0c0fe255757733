"""`orchestrator schedules`: when workflows run, and changing that while the scheduler runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import options
from orchestrator.cli.commands.services.serve import FOLDER, WorkflowFolder

if TYPE_CHECKING:
    from orchestrator.ledger.coordination.schedules import ScheduleState, ScheduleStates, ScheduleStore
    from orchestrator.scheduling.folder import Catalogue
    from orchestrator.scheduling.overview import ScheduleLine

app = typer.Typer(
    help="When workflows run, and changing that while the scheduler runs.", no_args_is_help=True, rich_markup_mode=None
)


def register(program: typer.Typer) -> None:
    """Add the group of commands."""
    program.add_typer(app, name="schedules")


Name = Annotated[str, typer.Argument(metavar="WORKFLOW", help="The workflow's name.")]


@app.command("list")
def list_schedules(folder: WorkflowFolder = FOLDER, as_json: options.Json = False) -> None:
    """List the schedules of a folder and what the scheduler knows of them."""
    from orchestrator.cli.display.json_output import print_json
    from orchestrator.clock import SystemClock
    from orchestrator.scheduling.overview import overview

    catalogue = _read(folder)
    with _store() as store:
        lines = overview(catalogue.workflows, store.all(), SystemClock().now())
    if as_json:
        print_json(lines)
    else:
        _print_lines(lines)


@app.command("next")
def next_times(
    folder: WorkflowFolder = FOLDER,
    workflow: Annotated[str | None, typer.Option(help="Only of this workflow.")] = None,
    count: Annotated[int, typer.Option(min=1, max=1000, help="The most times to show of each.")] = 5,
    as_json: options.Json = False,
) -> None:
    """Show when workflows run next, jitter included. Offline: pauses are not looked up."""
    from orchestrator.cli.display.json_output import print_json
    from orchestrator.cli.display.terminal import console, local, table
    from orchestrator.clock import SystemClock
    from orchestrator.scheduling.overview import upcoming

    now = SystemClock().now()
    fires = [
        fire
        for name, known in _read(folder).workflows.items()
        if known.schedule is not None and workflow in (None, name)
        for fire in upcoming(known.schedule, name, now, count)
    ]
    fires.sort(key=lambda fire: (fire.due, fire.workflow))
    if as_json:
        print_json([{"workflow": fire.workflow, "at": fire.at, "due": fire.due} for fire in fires])
    else:
        rows = [(local(fire.due), fire.workflow) for fire in fires]
        console().print(table(("DUE", "WORKFLOW"), rows, fold=("WORKFLOW",)) if rows else "nothing is scheduled")


@app.command("trigger")
def trigger(workflow: Name, as_json: options.Json = False) -> None:
    """Ask the scheduler for one run now. It waits for a run that goes on, unless overlap is allowed."""
    from orchestrator.cli.connect import open_store
    from orchestrator.scheduling import state as change
    from orchestrator.scheduling.fires import requested

    state = _changed(change.trigger, workflow)
    run = None
    if state.requested:
        with open_store() as ledger:
            run = ledger.runners.run_of_fire(workflow, requested(workflow, state.requested).trigger, state.requested)
    _tell(f"{workflow}: the scheduler will start {run}", {"workflow": workflow, "run_id": run}, as_json=as_json)


@app.command("pause")
def pause(workflow: Name, as_json: options.Json = False) -> None:
    """Start no scheduled runs of a workflow until it is resumed. A run that goes on is left alone."""
    from orchestrator.scheduling import state as change

    _changed(change.pause, workflow)
    _tell(f"{workflow}: paused", {"workflow": workflow, "paused": True}, as_json=as_json)


@app.command("resume")
def resume(workflow: Name, as_json: options.Json = False) -> None:
    """Start scheduled runs again. Times that passed meanwhile are not made up for."""
    from orchestrator.scheduling import state as change

    _changed(change.resume, workflow)
    _tell(f"{workflow}: active", {"workflow": workflow, "paused": False}, as_json=as_json)


def _changed(change: Callable[[ScheduleStates, str, datetime], ScheduleState], workflow: str) -> ScheduleState:
    from orchestrator.clock import SystemClock

    with _store() as store:
        return change(store, workflow, SystemClock().now())


@contextmanager
def _store() -> Iterator[ScheduleStore]:
    from orchestrator.ledger.coordination.schedules import open_schedules
    from orchestrator.settings import load_settings

    with open_schedules(load_settings().ledger_location()) as store:
        yield store


def _read(folder: Path) -> Catalogue:
    from orchestrator.actions.catalog import catalog
    from orchestrator.cli.connect import log_to_stderr
    from orchestrator.scheduling.folder import WorkflowFolder as Reading

    log_to_stderr("error")
    return Reading(folder, catalog).read()


def _tell(words: str, value: object, *, as_json: bool) -> None:
    from orchestrator.cli.display.json_output import print_json
    from orchestrator.cli.display.terminal import console

    if as_json:
        print_json(value)
    else:
        console().print(words)


def _print_lines(lines: Sequence[ScheduleLine]) -> None:
    from orchestrator.cli.display.terminal import console, local, table

    screen = console()
    if not lines:
        screen.print("no schedules")
        return
    columns = ("WORKFLOW", "STATE", "WHEN", "ZONE", "NEXT", "OVERLAP", "CATCH-UP", "HANDLED")
    rows = [
        (
            line.workflow,
            line.state,
            line.when,
            line.timezone,
            local(line.next),
            line.overlap,
            line.catch_up,
            local(line.handled),
        )
        for line in lines
    ]
    kept = 5 if screen.width < 120 else len(columns)
    screen.print(table(columns[:kept], [row[:kept] for row in rows], fold=("WORKFLOW", "WHEN")))
