"""`orchestrator queue`: runs that wait for a worker. `orchestrator workers`: who is there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import options
from orchestrator.cli.lookup import completion
from orchestrator.errors import UnknownRun, UsageError
from orchestrator.ledger.states import IdKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.ledger.writing.store import Ledger
    from orchestrator.queue.shared import SharedQueue
    from orchestrator.queue.tables import InQueue

app = typer.Typer(help="Runs that wait for a worker.", no_args_is_help=True, rich_markup_mode=None)
workers = typer.Typer(
    help="The processes on this ledger that carry out runs.", no_args_is_help=True, rich_markup_mode=None
)

_STATES = ("waiting", "delayed", "approval", "running", "dead")

QueuedId = Annotated[str, typer.Argument(metavar="RUN", help="The id of the run, or the beginning of it.")]
Priority = Annotated[
    int | None,
    typer.Option(min=1, max=1_000_000, help="Smaller is sooner, among runs of the same workflow. Default: 100."),
]
Delay = Annotated[float, typer.Option(min=0, metavar="SECONDS", help="Not before so many seconds from now.")]
OneWorkflow = Annotated[
    str, typer.Option("--workflow", help="Only this workflow.", autocompletion=completion.workflow_names)
]


def register(program: typer.Typer) -> None:
    """Add the groups of commands."""
    program.add_typer(app, name="queue")
    program.add_typer(workers, name="workers")


@app.command("add")
def add(
    file: options.WorkflowFile,
    inputs: options.Inputs = None,
    inputs_file: options.InputsFile = None,
    run_id: Annotated[str | None, typer.Option("--run-id", help="The run's id. Given again, nothing is added.")] = None,
    trigger: Annotated[str, typer.Option(help="What started it: manual, cron, ...; policies see it.")] = "queue",
    reason: options.Reason = "",
    priority: Priority = None,
    delay: Delay = 0.0,
    as_json: options.Json = False,
) -> None:
    """Let a worker carry out a workflow, and print the id of the run."""
    from orchestrator.cli.commands.run import request_for
    from orchestrator.clock import SystemClock
    from orchestrator.queue.lanes import limits_of
    from orchestrator.scheduling.queue.asking import queued

    request = request_for(file, options.inputs_from(inputs, inputs_file), inputs, run_id, trigger, reason)
    entry = queued(request, SystemClock().now())
    with _shared() as (_, shared):
        from orchestrator.queue.shared import PRIORITY

        added = shared.add(
            entry,
            workflow=request.loaded.text,
            limits=limits_of(request.loaded.workflow),
            priority=PRIORITY if priority is None else priority,
            delay=delay,
        )
    _say_added(request.run_id, added=added, as_json=as_json)


@app.command("list")
def list_queue(
    state: Annotated[
        list[str] | None,
        typer.Option(help="waiting, delayed, approval, running or dead; may be given again. Default: all but dead."),
    ] = None,
    workflow: options.OfWorkflow = None,
    limit: options.Limit = 200,
    as_json: options.Json = False,
) -> None:
    """List the runs that wait, and those that a worker has, oldest first.

    `dead` are those that nobody tries any more: workers died of them, or could not begin them.
    """
    from orchestrator.cli.display.json_output import print_json
    from orchestrator.cli.display.terminal import console, local, table

    wrong = sorted(set(state or ()) - set(_STATES))
    if wrong:
        raise UsageError(f"there is no state `{wrong[0]}` of a run in the queue", hint=f"one of {', '.join(_STATES)}")
    with _shared() as (ledger, shared):
        from orchestrator.queue.tables import QueueState

        wanted = {QueueState(each) for each in state or ()} or set(QueueState) - {QueueState.DEAD}
        found = shared.list(wanted, workflow=workflow, most=limit)
        pauses = ledger.queue.pauses()
    if as_json:
        print_json(found)
        return
    screen = console()
    for pause in pauses:
        of = f"of `{pause.workflow}` " if pause.workflow else ""
        why = f": {pause.reason}" if pause.reason else ""
        screen.print(f"paused: no run {of}begins since {local(pause.at)}, by {pause.by}{why}")
    if not found:
        screen.print("nothing waits" if not state else f"nothing is {' or '.join(state)}")
        return
    rows = [
        (each.run_id, each.workflow, each.state.value, local(each.queued_at), str(each.priority), _more(each))
        for each in found
    ]
    screen.print(table(("RUN", "WORKFLOW", "STATE", "QUEUED", "PRIORITY", "WORKER"), rows, fold=("WORKFLOW",)))
    if len(found) == limit:
        screen.print(f"{limit} shown; --limit shows more")


@app.command("remove")
def remove(run: QueuedId) -> None:
    """Take a run out of the queue that no worker has, or that is dead."""
    from orchestrator.cli.display.terminal import console

    with _shared() as (_, shared):
        run = _whole(shared, run)
        if not shared.remove(run):
            raise UnknownRun(
                f"no run {run} waits in the queue", hint="one that a worker has is ended with `runs cancel`"
            )
    console().print(f"{run} is taken out")


@app.command("retry")
def retry(
    run: options.RunId, reason: options.Reason = "", priority: Priority = None, as_json: options.Json = False
) -> None:
    """Put the retry of a run that failed into the queue, such as of one that is dead, and print its id.

    What had succeeded is not carried out again, as with `runs retry`.
    """
    from orchestrator.actions.catalog import catalog
    from orchestrator.clock import SystemClock
    from orchestrator.ledger.coordination.queue import QueuedRun
    from orchestrator.ledger.ids import new_run_id
    from orchestrator.ledger.reading.id_lookup import whole_id
    from orchestrator.queue.lanes import limits_of
    from orchestrator.recovery.retries.retry import refuse_retry
    from orchestrator.runs.recorded_workflow import recorded_text
    from orchestrator.runs.triggers import TRIGGER_RETRY
    from orchestrator.workflow.loader import load_text

    with _shared() as (ledger, shared):
        from orchestrator.queue.shared import PRIORITY

        record = ledger.run(whole_id(ledger, IdKind.RUN, run))
        if record is None:
            raise UnknownRun(f"no run {run} is in the ledger", hint="`orchestrator runs list` shows those that are")
        refuse_retry(ledger, record)
        text = recorded_text(ledger.runners, record.digest)
        workflow = load_text(text, filename=f"{record.workflow} in the ledger", actions=catalog).workflow
        if any(declared.secret for declared in workflow.inputs.values()):
            raise UsageError(
                "it has a secret input, and the queue is no place for secrets",
                hint=f"orchestrator runs retry {record.run_id} --inputs FILE",
            )
        entry = QueuedRun(
            run_id=new_run_id(),
            workflow=record.workflow,
            digest=record.digest,
            inputs=dict(record.inputs),
            trigger=TRIGGER_RETRY,
            queued_at=SystemClock().now(),
            reason=reason,
            retry_of=record.run_id,
        )
        most = PRIORITY if priority is None else priority
        shared.add(entry, workflow=text, limits=limits_of(workflow), priority=most)
        shared.remove(record.run_id)
    _say_added(entry.run_id, added=True, as_json=as_json)


@app.command("pause")
def pause(workflow: OneWorkflow = "", reason: options.Reason = "") -> None:
    """Let no queued run begin, or none of one workflow. What goes on goes on; what is put in waits."""
    from orchestrator.cli.connect import operator
    from orchestrator.cli.display.terminal import console
    from orchestrator.clock import SystemClock

    with _shared() as (ledger, _):
        ledger.queue.pause(workflow, by=operator(), reason=reason, at=SystemClock().now())
    console().print(f"no run of `{workflow}` begins" if workflow else "no queued run begins")


@app.command("resume")
def resume(workflow: OneWorkflow = "") -> None:
    """Let queued runs begin again, or those of one workflow."""
    from orchestrator.cli.display.terminal import console

    with _shared() as (ledger, _):
        if not ledger.queue.resume(workflow):
            what = f"the workflow `{workflow}`" if workflow else "the queue"
            raise UsageError(f"{what} is not paused", hint="`orchestrator queue list` shows what is")
    console().print(f"runs of `{workflow}` begin again" if workflow else "queued runs begin again")


@workers.command("list")
def list_workers(as_json: options.Json = False) -> None:
    """List the workers, schedulers and single runs on this ledger, those that died and are not cleared up included."""
    import json

    from orchestrator.cli.connect import open_store
    from orchestrator.cli.display.json_output import print_json
    from orchestrator.cli.display.terminal import console, local, table
    from orchestrator.runs.processes import has_ended

    with open_store() as ledger:
        found, driven = ledger.runners.all(), ledger.runners.driven()
    told = []
    for each in found:
        process = json.loads(each.process)
        told.append(
            {
                "id": each.runner_id,
                "role": process.get("role", "run"),
                "host": process.get("host"),
                "pid": process.get("pid"),
                "state": "gone" if has_ended(each) else "alive",
                "runs": driven.get(each.runner_id, 0),
                "max_runs": process.get("max_runs"),
                "last_sign_of_life": each.beat_at,
            }
        )
    if as_json:
        print_json(told)
    elif not told:
        console().print("no process is entered in this ledger")
    else:
        rows = [
            (
                str(each["id"]),
                str(each["role"]),
                str(each["state"]),
                f"{each['runs']} of {each['max_runs']}" if each["max_runs"] else str(each["runs"]),
                local(moment) if (moment := record.beat_at) else "",
            )
            for each, record in zip(told, found, strict=True)
        ]
        console().print(table(("ID", "ROLE", "STATE", "RUNS", "LAST SIGN OF LIFE"), rows, fold=("ID",)))


@contextmanager
def _shared() -> Iterator[tuple[Ledger, SharedQueue]]:
    from orchestrator.cli.connect import ledger_url, open_store
    from orchestrator.queue.opening import check_ledger, shared_queue

    url = ledger_url()
    check_ledger(url)
    with open_store() as ledger, shared_queue(url, ledger.queue) as shared:
        yield ledger, shared


def _whole(shared: SharedQueue, named: str) -> str:
    from orchestrator.ledger.reading.id_lookup import id_among
    from orchestrator.queue.tables import QueueState

    queued: Sequence[str] = sorted(each.run_id for each in shared.list(set(QueueState), most=100_000))
    return id_among(
        lambda starts, most: [each for each in queued if each.startswith(tuple(starts))][:most], IdKind.RUN, named
    )


def _say_added(run_id: str, *, added: bool, as_json: bool) -> None:
    from orchestrator.cli.display.json_output import print_json
    from orchestrator.cli.display.terminal import console

    if as_json:
        print_json({"run": run_id, "added": added})
    else:
        console().print(run_id if added else f"{run_id} is known already: nothing was added")


def _more(each: InQueue) -> str:
    from orchestrator.cli.display.terminal import local

    return each.worker or (f"not before {local(each.until)}" if each.until is not None else "")
