"""`orchestrator doctor`: what is wrong with this installation, and what to do about it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import options
from orchestrator.errors import ExitCode, OrchestratorError, UsageError

if TYPE_CHECKING:
    from orchestrator.doctor.findings import Finding
    from orchestrator.doctor.subject import Subject
    from orchestrator.settings import Settings
    from orchestrator.vault.config import VaultConfig
    from orchestrator.workflow.loader import LoadedWorkflow


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor")(doctor)


def doctor(
    workflows: Annotated[
        list[Path] | None, typer.Argument(metavar="[WORKFLOWS]...", help="Workflows, or folders of them.")
    ] = None,
    issue: Annotated[
        bool,
        typer.Option("--issue", help="Also issue the credentials of a step for each connection, and revoke them."),
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Let warnings fail, too.")] = False,
    as_json: options.Json = False,
) -> None:
    """Look at everything that runs need, and say what is wrong with it and what to do.

    Settings, Vault, the login and what it may, what is provisioned, policies, endpoints, ledger, packages. Nothing is
    issued and nothing is changed without --issue. The exit code is that of the first fault.
    """
    from orchestrator.doctor.findings import exit_code

    found = _findings(workflows or [], issue=issue)
    if as_json:
        _print_json(found, strict=strict)
    else:
        _print(found)
    if code := exit_code(found, strict=strict):
        raise typer.Exit(int(code))


def _findings(given: Sequence[Path], *, issue: bool) -> list[Finding]:
    from orchestrator.cli import interruption
    from orchestrator.doctor.examination import examine
    from orchestrator.doctor.findings import fault_of
    from orchestrator.doctor.variables import AREA, variables
    from orchestrator.doctor.workflows import read
    from orchestrator.settings import load_settings

    try:
        settings = load_settings()
    except UsageError as error:
        return [fault_of(AREA, error), *(each for each in variables(os.environ) if each.advice)]
    loaded, invalid = read(given)
    subject = _subject(settings, loaded)
    found = [*variables(os.environ), *invalid, *interruption.run(lambda: examine(subject))]
    return [*found, *_issued(settings, loaded)] if issue else found


def _subject(settings: Settings, loaded: Sequence[LoadedWorkflow]) -> Subject:
    from orchestrator.cli.connect import log_to_stderr
    from orchestrator.configured.services import policy_engine, redactor
    from orchestrator.configured.vault_login import home_token
    from orchestrator.doctor.subject import Subject

    log_to_stderr("error")  # what is found is said once, in the report
    return Subject(
        vault=_vault(settings),
        policy=lambda: policy_engine(settings),
        ledger=settings.ledger_location(),
        remember=redactor().add,
        endpoints=settings.endpoints,
        primaries=settings.primaries,
        destinations=settings.notify,
        workflows=loaded,
        queue=settings.queue,
        confinement=settings.confinement,
        home_token=home_token(),
        traces=bool(os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")),
    )


def _vault(settings: Settings) -> VaultConfig | OrchestratorError:
    from orchestrator.configured.vault_login import vault_config

    try:
        return vault_config(settings)
    except OrchestratorError as error:
        return error


def _issued(settings: Settings, loaded: Sequence[LoadedWorkflow]) -> list[Finding]:
    from orchestrator.assembly import interruptible_services
    from orchestrator.cli import interruption
    from orchestrator.configured.services import redactor, runner_config
    from orchestrator.doctor.findings import fault_of
    from orchestrator.doctor.vault.issuing import AREA, issued

    async def go() -> list[Finding]:
        async with interruptible_services(runner_config(settings), redactor=redactor()) as (services, interruptions):
            return await interruptions.carry_out(issued(services, loaded))

    try:
        return interruption.run(go)
    except OrchestratorError as error:
        return [fault_of(AREA, error)]


def _print(found: Sequence[Finding]) -> None:
    from rich.text import Text

    from orchestrator.cli.display.printable import one_line
    from orchestrator.cli.display.terminal import console
    from orchestrator.configured.services import redactor
    from orchestrator.doctor.findings import Mark

    marks = {
        Mark.FINE: ("✓", "green"),
        Mark.WARNING: ("!", "yellow"),
        Mark.FAULT: ("✗", "red"),
        Mark.NOT_SEEN: ("?", "dim"),
    }
    screen = console(sys.stdout)
    width = max(len(each.area) for each in found)
    for each in found:
        said = one_line(redactor().redact(each.found))
        advice = f"; {one_line(redactor().redact(each.advice))}" if each.advice else ""
        screen.print(Text.assemble(marks[each.mark], f" {each.area:<{width}}  {said}{advice}"), soft_wrap=True)
    count = {mark: sum(each.mark is mark for each in found) for mark in Mark}
    screen.print(f"{count[Mark.FAULT]} faults, {count[Mark.WARNING]} warnings, {count[Mark.NOT_SEEN]} not looked at")


def _print_json(found: Sequence[Finding], *, strict: bool) -> None:
    import json

    from orchestrator.cli.display.json_output import print_json
    from orchestrator.configured.services import redactor
    from orchestrator.doctor.findings import exit_code

    sound = exit_code(found, strict=strict) is ExitCode.DONE
    findings = [{name: redactor().redact(str(value)) for name, value in each.as_json().items()} for each in found]
    print_json({"sound": sound, "findings": json.loads(json.dumps(findings))})
