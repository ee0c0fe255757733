"""`orchestrator queue`: runs that wait for a worker."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli import options
from orchestrator.errors import UnknownRun

app = typer.Typer(help="Runs that wait for a worker.", no_args_is_help=True, rich_markup_mode=None)


def register(program: typer.Typer) -> None:
    """Add the group of commands."""
    program.add_typer(app, name="queue")


@app.command("add")
def add(
    file: options.WorkflowFile,
    inputs: options.Inputs = None,
    inputs_file: options.InputsFile = None,
    run_id: Annotated[str | None, typer.Option("--run-id", help="The run's id. Given again, nothing is added.")] = None,
    trigger: Annotated[str, typer.Option(help="What started it: manual, cron, ...; policies see it.")] = "queue",
    reason: options.Reason = "",
    as_json: options.Json = False,
) -> None:
    """Let a worker carry out a workflow, and print the id of the run."""
    from orchestrator.cli.commands.run import request_for
    from orchestrator.cli.connect import open_store
    from orchestrator.cli.display.json_output import print_json
    from orchestrator.cli.display.terminal import console
    from orchestrator.clock import SystemClock
    from orchestrator.scheduling.queue import enqueue

    request = request_for(file, options.inputs_from(inputs, inputs_file), inputs, run_id, trigger, reason)
    with open_store() as ledger:
        added = enqueue(ledger.queue, request, SystemClock())
    if as_json:
        print_json({"run": request.run_id, "added": added})
    else:
        console().print(request.run_id if added else f"{request.run_id} is known already: nothing was added")


@app.command("list")
def list_queue(as_json: options.Json = False) -> None:
    """List the runs that wait, and those that a worker has claimed, oldest first."""
    from orchestrator.cli.connect import open_store
    from orchestrator.cli.display.json_output import print_json
    from orchestrator.cli.display.terminal import console, local, table

    with open_store() as ledger:
        found = ledger.queue.all()
    if as_json:
        print_json(found)
    elif not found:
        console().print("nothing waits")
    else:
        rows = [(each.run_id, each.workflow, local(each.queued_at), each.claimed_by or "waits") for each in found]
        console().print(table(("RUN", "WORKFLOW", "QUEUED", "WORKER"), rows, fold=("WORKFLOW",)))


@app.command("remove")
def remove(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The id of the run, or the beginning of it.")],
) -> None:
    """Take a run out of the queue that no worker has claimed."""
    from orchestrator.cli.connect import open_store
    from orchestrator.cli.display.terminal import console
    from orchestrator.cli.lookup.ids import id_among
    from orchestrator.ledger.states import IdKind

    with open_store() as ledger:
        queued = sorted(each.run_id for each in ledger.queue.all())
        run = id_among(
            lambda starts, most: [each for each in queued if each.startswith(tuple(starts))][:most], IdKind.RUN, run
        )
        if not ledger.queue.remove(run):
            raise UnknownRun(f"no run {run} waits in the queue", hint="a claimed run is ended with `runs cancel`")
    console().print(f"{run} is taken out")
