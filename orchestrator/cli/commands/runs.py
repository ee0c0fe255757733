"""`orchestrator runs`: what was run, and what happened in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from orchestrator.cli import options
from orchestrator.cli.lookup import completion
from orchestrator.errors import ExitCode, UnknownRun, UsageError
from orchestrator.jsontypes import counted
from orchestrator.ledger.states import RESUMABLE, IdKind, RunState

if TYPE_CHECKING:
    from orchestrator.assembly import RunnerConfig
    from orchestrator.ledger.findings import Examined
    from orchestrator.ledger.types import LedgerReader, RunRecord
    from orchestrator.ledger.writing.store import Ledger
    from orchestrator.recovery.retries.retry import WantedRetry
    from orchestrator.runs.types import RunOutcome
    from orchestrator.workflow.loader import LoadedWorkflow

app = typer.Typer(help="What was run, and what happened in it.", no_args_is_help=True, rich_markup_mode=None)


def register(program: typer.Typer) -> None:
    """Add the group of commands."""
    program.add_typer(app, name="runs")


@app.command("list")
def list_runs(
    workflow: options.OfWorkflow = None,
    state: Annotated[RunState | None, typer.Option(help="Only in this state.")] = None,
    trigger: Annotated[
        str | None, typer.Option(help="Only those that this started: manual, schedule, retry, ...")
    ] = None,
    agent: Annotated[str | None, typer.Option(help="Only of this agent.")] = None,
    since: options.Since = None,
    until: options.Until = None,
    before: Annotated[
        str | None,
        typer.Option(
            metavar="RUN", help="Only older ones than this run: the next page.", autocompletion=completion.run_ids
        ),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Also proofs, sweeps, and the calls in tasks, with what each is.")
    ] = False,
    limit: options.Limit = 50,
    as_json: options.Json = False,
) -> None:
    """List runs, newest first.

    Proofs, sweeps and the calls in tasks are left out, unless --all is given. Proofs are also there with
    --trigger prove, and calls with the name of their workflow.
    """
    from orchestrator.cli.connect import ledger_reader
    from orchestrator.cli.display.json_output import print_json
    from orchestrator.cli.display.runs.listing import print_runs, runs_json
    from orchestrator.clock import SystemClock
    from orchestrator.ledger.types import RunFilter
    from orchestrator.presentation.moments import parse_moment

    now = SystemClock().now()
    query = RunFilter(
        workflow=workflow,
        state=state,
        agent=agent,
        trigger=trigger,
        since=parse_moment(since, now=now) if since else None,
        until=parse_moment(until, now=now) if until else None,
        everything=everything,
        limit=limit,
    )
    with ledger_reader() as reader:
        found = reader.newest_runs(replace(query, before=_record(reader, before) if before else None))
        retries = reader.retries([run.run_id for run in found])
    if as_json:
        print_json(runs_json(found, retries))
    else:
        print_runs(found, retries, kinds=everything, limit=limit, now=now)


@app.command("show")
def show(
    run: options.RunId,
    everything: Annotated[
        bool, typer.Option("--all", help="Also the logins that the orchestrator made to sweep and to set row limits.")
    ] = False,
    outputs: Annotated[
        bool, typer.Option("--outputs", help="What steps gave in full, not only the beginning of what is long.")
    ] = False,
    following: Annotated[
        bool,
        typer.Option(
            "--follow", "-f", help="Print what happens as it is recorded, until the run ends; exit with its code."
        ),
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Show one run: its steps, what they gave, its leases and its history in order. With --json always all of it.

    With --follow the history, line by line (--json: as JSON lines), of a run that goes on anywhere. Ctrl-C leaves the
    run alone. It ends with exit code 7 where the run is left until somebody agrees, and with 130 where its process
    has died and it can be resumed.
    """
    from orchestrator.cli.connect import ledger_reader
    from orchestrator.cli.display.json_output import print_json
    from orchestrator.cli.display.run_view import print_story
    from orchestrator.presentation.runs import RunStory

    if following:
        _follow(run, everything=everything, as_json=as_json)
    with ledger_reader() as reader:
        record = _record(reader, run)
        story = RunStory.read(reader, record)
    if as_json:
        print_json(story)
    else:
        print_story(story, everything=everything, outputs=outputs)


def _follow(run: str, *, everything: bool, as_json: bool) -> NoReturn:
    """Raises typer.Exit with the exit code of the run."""
    import time

    from orchestrator.cli import failures
    from orchestrator.cli.connect import open_store
    from orchestrator.cli.display.runs.follow import LineTeller, SignsOfLife, follow, tell_as_json
    from orchestrator.settings import load_settings

    with open_store() as ledger:
        record = _record(ledger, run)
        tell = tell_as_json if as_json else LineTeller(record.started_at, everything=everything)
        life = SignsOfLife(ledger, load_settings().dead_after, failures.note, time.monotonic)
        ended = follow(ledger, record.run_id, tell, sleep=time.sleep, quiet=life)
    if ended.state in RESUMABLE:
        failures.note(
            f"{ended.run_id} is {ended.state.value}: `orchestrator runs resume {ended.run_id}` goes on with it"
        )
    raise typer.Exit(ended.exit_code or 0)


@app.command("verify")
def verify(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN]",
            help="The id of the run, call or task, or the beginning of it; without it, all of them.",
            autocompletion=completion.run_ids,
        ),
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
    from orchestrator.ledger.reading.id_lookup import whole_id

    checked, tasks, wrong = 0, 0, []
    with ledger_reader() as reader:
        run = whole_id(reader, IdKind.TASK, whole_id(reader, IdKind.RUN, run)) if run is not None else None
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
        console().print(f"{_counted(checked, tasks)}: {len(wrong)} not as recorded", style="red")
    if wrong:
        raise typer.Exit(int(ExitCode.STEP_FAILED))


def _counted(histories: int, tasks: int) -> str:
    """Calls are runs, and tasks are told apart from them."""
    runs = counted(histories - tasks, "run")
    return runs if not tasks else f"{runs} and {counted(tasks, 'task')}"


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
    run: options.RunId,
    inputs_file: options.SecretInputsFile = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing unless something went wrong.")] = False,
    as_json: options.Json = False,
    grace: options.Grace = None,
    no_wait: options.NoWait = False,
    follow: options.Follow = False,
) -> None:
    """Go on with a run that was interrupted or waits: finished steps are not run again. Secret inputs are needed."""
    from orchestrator.assembly import resume_run
    from orchestrator.cli.commands.run import carry_out

    secrets = options.inputs_from(None, inputs_file)
    run_id = _whole(run)
    carry_out(
        lambda config, **how: resume_run(config, run_id, secrets, **how),
        run_id=run_id,
        quiet=quiet,
        as_json=as_json,
        grace=grace,
        no_wait=no_wait,
        follow=follow,
    )


@app.command("retry")
def retry(
    run: options.RunId,
    file: Annotated[
        Path | None,
        typer.Option("--file", metavar="FILE", help="The workflow as it is now, where it has been mended meanwhile."),
    ] = None,
    inputs: options.Inputs = None,
    inputs_file: options.InputsFile = None,
    run_id: Annotated[
        str | None,
        typer.Option("--run-id", help="The retry's id. Given again, it is gone on with, or its outcome told."),
    ] = None,
    reason: options.Reason = "",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing unless something went wrong.")] = False,
    as_json: options.Json = False,
    grace: options.Grace = None,
    no_wait: options.NoWait = False,
    follow: options.Follow = False,
) -> None:
    """Go on from a run that failed, in a run of its own: what succeeded there is taken over, the rest carried out.

    The workflow is the recorded one, or with --file the mended one; then steps that are declared otherwise run again,
    and what needs them. The inputs are those of the run; secret ones are not on record and have to be given again. Each
    run is retried once, and if that fails, too, the retry is retried.
    """
    from orchestrator.assembly import retry_run
    from orchestrator.cli.commands.run import carry_out
    from orchestrator.ledger.ids import new_run_id
    from orchestrator.recovery.retries.retry import WantedRetry

    wanted = WantedRetry(
        of=_whole(run),
        run_id=options.chosen_run_id(run_id) or new_run_id(),
        given=options.inputs_from(inputs, inputs_file),
        mended=_mended(file),
        reason=reason,
    )
    _refuse_secrets_among_arguments(wanted, inputs)

    def work(config: RunnerConfig, *, notice: Callable[[str], None], **how: Any) -> Coroutine[Any, Any, RunOutcome]:
        return retry_run(config, wanted, notice=notice, say=_unsaid if quiet else notice, **how)

    carry_out(
        work,
        run_id=wanted.run_id,
        grace=grace,
        no_wait=no_wait,
        quiet=quiet,
        as_json=as_json,
        follow=follow,
    )


def _unsaid(text: str) -> None:
    """What is taken over, told to somebody who wants quiet."""


def _mended(file: Path | None) -> LoadedWorkflow | None:
    from orchestrator.actions.catalog import catalog
    from orchestrator.workflow.loader import load

    return None if file is None else load(file, actions=catalog)


def _refuse_secrets_among_arguments(wanted: WantedRetry, pairs: list[str] | None) -> None:
    """By the workflow that is carried out: the mended one, or that of the ledger."""
    from orchestrator.cli.connect import open_store
    from orchestrator.runs.recorded_workflow import recorded_workflow

    if not pairs:
        return
    if (loaded := wanted.mended) is None:
        with open_store() as ledger:
            record = _record(ledger, wanted.of)
            loaded = recorded_workflow(ledger.runners, record.digest, record.workflow)
    options.refuse_secrets_among_arguments(loaded.workflow, pairs)


@app.command("cancel")
def cancel(
    run: options.RunId, reason: Annotated[str, typer.Option(help="Why, for the record.")] = "cancelled by an operator"
) -> None:
    """Ask the process that drives a run to cancel it: its steps are stopped and their credentials revoked.

    A run whose process is dead is ended by the next recovery, such as `orchestrator leases sweep`.
    """
    import asyncio

    from orchestrator.cli.connect import open_store
    from orchestrator.cli.display.terminal import console
    from orchestrator.clock import SystemClock
    from orchestrator.recovery.waiting import cancel_waiting
    from orchestrator.runs.processes import has_ended

    with open_store() as ledger:
        if ledger.run(run) is None and ledger.queue.holds(run):
            _take_out(ledger, run)
            console().print(f"{run} is taken out of the queue: nothing of it had begun")
            return
        record = _record(ledger, run)
        run = record.run_id
        if record.state is RunState.WAITING:
            asyncio.run(cancel_waiting(ledger, ledger, ledger.approvals, run, reason, now=SystemClock().now()))
            console().print(f"{run} is cancelled: it waited, and nothing of it was open")
            return
        if record.state is not RunState.RUNNING:
            raise UsageError(f"run {run} has ended already: {record.state.value}")
        if not ledger.runners.request_cancel(run, reason):
            raise UsageError(f"nobody drives run {run}", hint="`orchestrator leases sweep` closes what it left")
        driver = ledger.runners.driver(run)
        queued = ledger.queue.holds(run)
    words = f"asked its process to cancel it; `orchestrator runs show {run}` tells when it has ended"
    if driver is None or has_ended(driver):
        words = "its process has ended; `orchestrator leases sweep` cancels it and closes what it left"
        if queued:
            words = "its worker has ended; the next one that has it in hand cancels it and closes what is left"
    console().print(f"{run}: {words}")


def _take_out(ledger: Ledger, run: str) -> None:
    from orchestrator.cli.connect import ledger_url
    from orchestrator.queue.opening import shared_queue

    with shared_queue(ledger_url(), ledger.queue) as shared:
        if not shared.remove(run):
            raise UsageError(f"a worker is about to begin run {run}", hint="try again")


def _whole(run: str) -> str:
    """The id of the run that is named, before anything is connected for it."""
    from orchestrator.cli.connect import ledger_reader

    with ledger_reader() as reader:
        return _record(reader, run).run_id


def _record(reader: LedgerReader, named: str) -> RunRecord:
    from orchestrator.ledger.reading.id_lookup import whole_id

    record = reader.run(whole_id(reader, IdKind.RUN, named))
    if record is not None:
        return record
    task = whole_id(reader, IdKind.TASK, named)
    if reader.task(task) is not None:
        raise UnknownRun(
            f"{task} is a task, not a run",
            hint=f"see `orchestrator tasks show {task}`; `orchestrator tasks close {task}` ends it",
        )
    raise UnknownRun(
        f"no run {named} is in the ledger",
        hint="`orchestrator runs list` shows those that are; of an id four characters are enough, beside `run_`",
    )
