"""`orchestrator run`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli import options
from orchestrator.cli.display import streams

if TYPE_CHECKING:
    from orchestrator.assembly import RunnerConfig
    from orchestrator.cli.display.runs.live import View
    from orchestrator.cli.display.runs.output import StepOutput
    from orchestrator.jsontypes import JsonObject
    from orchestrator.runs.types import RunOutcome, RunRequest


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("run")(run)


def run(
    file: options.WorkflowFile,
    inputs: options.Inputs = None,
    inputs_file: options.InputsFile = None,
    run_id: Annotated[
        str | None,
        typer.Option("--run-id", help="The run's id. Given again, the run is gone on with, or its outcome told."),
    ] = None,
    trigger: Annotated[str, typer.Option(help="What started it: manual, cron, ...; policies see it.")] = "manual",
    reason: options.Reason = "",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing unless something went wrong.")] = False,
    follow: options.Follow = False,
    as_json: options.Json = False,
    grace: options.Grace = None,
    no_wait: options.NoWait = False,
) -> None:
    """Run a workflow, each step with its own credentials.

    They are issued when the step begins and revoked when it ends, however it ends.
    """
    request = request_for(file, options.inputs_from(inputs, inputs_file), inputs, run_id, trigger, reason)
    from orchestrator.assembly import run_workflow

    if run_id is None:
        refuse_what_lacks_something(request)

    def work(config: RunnerConfig, *, notice: Callable[[str], None], **how: Any) -> Coroutine[Any, Any, RunOutcome]:
        return run_workflow(config, request, notice=notice, others=_unsaid if quiet else notice, **how)

    carry_out(
        work,
        run_id=request.run_id,
        grace=grace,
        no_wait=no_wait,
        quiet=quiet,
        as_json=as_json,
        follow=follow,
        actions={name: step.action for name, step in request.loaded.workflow.steps.items()},
    )


def refuse_what_lacks_something(request: RunRequest) -> None:
    """Raise InvalidWorkflow, before anything is on record, where some step that runs in any case cannot.

    Of steps with an `if` the run itself says it before its first one: policies may forbid that one is evaluated.
    """
    from orchestrator.planning.readiness import lacking, none_for_certain
    from orchestrator.settings import load_settings
    from orchestrator.workflow.problems import InvalidWorkflow

    if problems := lacking(request.loaded, load_settings().endpoints, never=none_for_certain):
        raise InvalidWorkflow(problems)


def _unsaid(text: str) -> None:
    """What became of other runs, told to somebody who wants quiet."""


def carry_out(
    work: Callable[..., Coroutine[Any, Any, RunOutcome]],
    *,
    run_id: str,
    grace: float | None = None,
    no_wait: bool = False,
    quiet: bool,
    as_json: bool,
    follow: bool = False,
    actions: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Show a run while it is carried out, and end with its exit code.

    `follow`: with what its programs write. `actions` are those of its steps, as far as they are known before.
    """
    with ExitStack() as stack:
        view = _view(actions, quiet=quiet, as_json=as_json)
        output = _followed(view, stack) if follow else None
        stack.enter_context(view)
        outcome = _carry_out(work, view, run_id, grace, no_wait=no_wait, output=output)
    code = int(outcome.exit_code)
    try:
        _conclude(outcome, view, quiet=quiet)
    except OSError as error:  # the run has ended: its own code says more, and a reader may go when he likes
        if not code and not isinstance(error, BrokenPipeError):
            raise
        streams.write_nowhere(sys.stdout)
    raise typer.Exit(code)


def request_for(
    file: Path,
    given: JsonObject,
    pairs: list[str] | None,
    run_id: str | None,
    trigger: str,
    reason: str = "",
    *,
    placeholders: bool = False,
) -> RunRequest:
    """What is to be run. With `placeholders` inputs that are not given are left out instead of refused."""
    from orchestrator.actions.catalog import catalog
    from orchestrator.ledger.ids import new_run_id
    from orchestrator.runs.types import RunRequest
    from orchestrator.workflow.inputs import bind_inputs
    from orchestrator.workflow.loader import load

    chosen = options.chosen_run_id(run_id)
    loaded = load(file, actions=catalog)
    if not placeholders:
        loaded.refuse_tools("`orchestrator plan FILE` shows what each of them allows")
    options.refuse_secrets_among_arguments(loaded.workflow, pairs)
    bound = bind_inputs(loaded.workflow, given, from_text=True, partial=placeholders)
    return RunRequest(run_id=chosen or new_run_id(), loaded=loaded, inputs=bound, trigger=trigger, reason=reason)


def _view(actions: Mapping[str, str], *, quiet: bool, as_json: bool) -> View:
    from orchestrator.cli.display.runs.live import JsonLines, LiveTable, PlainLines

    if as_json:
        return JsonLines()
    if sys.stdout.isatty() and not quiet:
        return LiveTable(actions=actions)
    return PlainLines(quiet=quiet)


def _followed(view: View, stack: ExitStack) -> StepOutput:
    """What is told what programs write, until the stack is closed: in order with the lines of the view."""
    from orchestrator.cli.display.runs.live import LiveTable, PlainLines
    from orchestrator.cli.display.runs.output import StepOutput, writing_to
    from orchestrator.configured.services import redactor

    tell = view.line if isinstance(view, LiveTable) else writing_to(sys.stderr)
    output = stack.enter_context(StepOutput(redactor(), tell))
    if isinstance(view, PlainLines):
        view.outlet = output
    return output


def _carry_out(
    work: Callable[..., Coroutine[Any, Any, RunOutcome]],
    view: View,
    run_id: str,
    grace: float | None,
    *,
    no_wait: bool,
    output: StepOutput | None = None,
) -> RunOutcome:
    from orchestrator.cli import interruption
    from orchestrator.cli.connect import log_to_stderr
    from orchestrator.cli.tracing import traced
    from orchestrator.configured.services import redactor, runner_config
    from orchestrator.settings import load_settings
    from orchestrator.telemetry.observed_ledger import both, only

    settings = load_settings()
    log_to_stderr(settings.log_level)
    # Kept until every thread has ended: the policy engine must end in this one.
    config = replace(runner_config(settings, grace=grace), parks=no_wait)
    if output is not None:
        config = replace(config, printed=output.printed)
    with traced() as spans:
        observer = both(only(run_id, view.observe), spans)
        return interruption.run(lambda: work(config, redactor=redactor(), observer=observer, notice=view.notice))


def _conclude(outcome: RunOutcome, view: View, *, quiet: bool) -> None:
    """The last word. Raises OSError where it cannot be written, after what stands on the standard error."""
    from orchestrator.cli.display.json_output import json_line
    from orchestrator.cli.display.runs.live import JsonLines, LiveTable, Outlet
    from orchestrator.cli.display.summary import outcome_json, print_summary, problems

    try:
        if isinstance(view, JsonLines):
            view.outlet.line(json_line(outcome_json(outcome, view.board)))
            if view.outlet.error is not None:
                raise view.outlet.error
        elif not quiet:
            print_summary(outcome, view.board, steps=not isinstance(view, LiveTable))
            sys.stdout.flush()
    finally:
        if text := problems(outcome, view.board, quiet=quiet):
            Outlet(sys.stderr).line(text.rstrip("\n"))
