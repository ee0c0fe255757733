"""`orchestrator validate`, `plan` and `schema`: everything about a workflow that needs no server."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from orchestrator.cli import options
from orchestrator.cli.display.printable import clean, one_line
from orchestrator.cli.written import write
from orchestrator.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from orchestrator.workflow.loader import LoadedWorkflow
    from orchestrator.workflow.problems import Problem


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (validate, plan, schema):
        app.command(command.__name__)(command)


def schema(
    what: Annotated[
        Literal["workflow", "policy-request", "policy-decision"],
        typer.Argument(metavar="[workflow|policy-request|policy-decision]", help="Of what."),
    ] = "workflow",
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write it here.")] = None,
) -> None:
    """Print a JSON Schema: of workflow files, for editors, or of what policies are asked and answer."""
    import json

    text = json.dumps(_schema(what), indent=2, ensure_ascii=False) + "\n"
    if output is None:
        sys.stdout.write(text)
        return
    write(output, text)


def _schema(what: str) -> Mapping[str, Any]:
    if what == "workflow":
        from orchestrator.actions.catalog import catalog
        from orchestrator.workflow.schema import json_schema

        return json_schema(catalog)
    from orchestrator.policy.documents import decision_schema, request_schema

    return request_schema() if what == "policy-request" else decision_schema()


def validate(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="Workflows, folders of them, or - for the standard input."),
    ],
    strict: Annotated[bool, typer.Option("--strict", help="Let warnings fail, too.")] = False,
    as_json: options.Json = False,
) -> None:
    """Check workflows, and say where they are wrong. Nothing runs."""
    from orchestrator.cli.display.json_output import print_json

    found = _found(files)
    problems = [problem for of_file in found.values() for problem in of_file]
    wrong = [problem for problem in problems if strict or problem.severity == "error"]
    if as_json:
        print_json({"valid": not wrong, "problems": [problem.as_json() for problem in problems]})
    else:
        for problem in problems:
            sys.stderr.write(clean(problem.render()) + "\n")
        for name, of_file in found.items():
            if not of_file:
                sys.stdout.write(f"{one_line(name)}: valid\n")
    if wrong:
        raise typer.Exit(int(ExitCode.INVALID))


def _found(files: Sequence[Path]) -> dict[str, Sequence[Problem]]:
    """What is wrong with each file, and with each of the folders; nothing that is wrong with one hides another."""
    from orchestrator.planning.lint import lint
    from orchestrator.workflow.loader import of_one_name, unreadable
    from orchestrator.workflow.problems import InvalidWorkflow

    found: dict[str, list[Problem]] = {}
    valid: dict[Path, dict[str, LoadedWorkflow]] = {}
    for file in files:
        try:
            for path in _workflows_of(file):
                try:
                    loaded = _loaded(path, within=None if path == file else file)
                    valid.setdefault(path.parent, {})[str(path)] = loaded
                    found[str(path)] = list(lint(loaded))
                except InvalidWorkflow as error:
                    found[str(path)] = list(error.problems)
                except UsageError as error:
                    found[str(path)] = [unreadable(str(path), error)]
        except UsageError as error:
            found[str(file)] = [unreadable(str(file), error)]
    for of_folder in valid.values():
        for problem in of_one_name(of_folder.values()):
            found[problem.file].append(problem)
    return {name: sorted(of_file) for name, of_file in found.items()}


def _workflows_of(file: Path) -> Sequence[Path]:
    from orchestrator.workflow.loader import files_of

    if not file.is_dir():
        return [file]
    if not (files := files_of(file)):
        raise UsageError(f"there is no workflow in {file}", hint="name the folder with the `*.yaml` files")
    return files


def _loaded(file: Path, *, within: Path | None) -> LoadedWorkflow:
    from orchestrator.actions.catalog import catalog
    from orchestrator.workflow.files import read_standard_input
    from orchestrator.workflow.loader import load, load_text

    if str(file) == "-":
        return load_text(read_standard_input(), filename="-", actions=catalog, directory=os.getcwd())
    return load(file, actions=catalog, within=within)


def plan(
    file: options.WorkflowFile,
    inputs: options.Inputs = None,
    inputs_file: options.InputsFile = None,
    ask_policy: Annotated[
        bool, typer.Option("--ask-policy", help="Ask the policy, too, where it is a service (engines opa, authzen).")
    ] = False,
    agent: Annotated[
        str, typer.Option("--agent", metavar="NAME", help="Of tools: who would call them, for the policy.")
    ] = "",
    as_json: options.Json = False,
) -> None:
    """Show what each step, or each call of a tool, will be allowed to do.

    Offline: no network, no secrets, the same answer every time; a policy that is a service is asked with --ask-policy
    only. The exit code is 3 where the policy denies a step.
    """
    from orchestrator.actions.catalog import action, catalog
    from orchestrator.cli import failures, interruption
    from orchestrator.cli.display.json_output import print_json
    from orchestrator.cli.display.plan_view import plan_json, print_plan
    from orchestrator.cli.dry_run import decided
    from orchestrator.configured.services import policy_engine
    from orchestrator.planning.aws_actions import NOT_LOOKED_UP, looks_nothing_up
    from orchestrator.planning.plan import build
    from orchestrator.planning.readiness import certainly_false, lacking
    from orchestrator.settings import load_settings
    from orchestrator.workflow.inputs import bind_inputs, public_inputs
    from orchestrator.workflow.loader import load

    loaded = load(file, actions=catalog)
    options.refuse_secrets_among_arguments(loaded.workflow, inputs)
    bound = bind_inputs(loaded.workflow, options.inputs_from(inputs, inputs_file), from_text=True)
    settings = load_settings()
    if agent and not loaded.workflow.is_task:
        raise UsageError(f"the workflow names its agent, `{loaded.workflow.agent}`", hint="leave --agent out")
    planned = build(loaded, bound, action=action, endpoints=settings.endpoints, agent=agent)
    view = interruption.run(lambda: decided(planned, policy_engine(settings), ask=ask_policy))
    lacks = lacking(
        loaded,
        settings.endpoints,
        never=certainly_false(public_inputs(loaded.workflow, bound), settings.endpoints),
        destinations=settings.notify,
    )
    if as_json:
        print_json({**plan_json(view), "lacks": [problem.as_json() for problem in lacks]})
    else:
        print_plan(view)
    for problem in lacks:
        sys.stderr.write(clean(replace(problem, severity="warning").render()) + "\n")
    if lacks:
        failures.note("a run with these settings is refused before its first step")
    if looks_nothing_up(loaded.workflow):
        failures.note(NOT_LOOKED_UP)
    if view.denied:
        raise typer.Exit(int(ExitCode.REFUSED))
