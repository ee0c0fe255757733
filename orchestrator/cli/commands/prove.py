"""`orchestrator prove`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import options
from orchestrator.cli.display.printable import one_line
from orchestrator.cli.written import check_place, write
from orchestrator.errors import ExitCode

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.proof.report import GrantProof, Proof
    from orchestrator.runs.types import RunRequest


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("prove")(prove)


def prove(
    file: options.WorkflowFile,
    step: Annotated[list[str] | None, typer.Option("--step", "-s", help="Only this step; may be given again.")] = None,
    inputs: options.Inputs = None,
    inputs_file: options.InputsFile = None,
    before: Annotated[
        str | None, typer.Option("--before", metavar="ROLE", help="The database role that was used before, to compare.")
    ] = None,
    allow_public: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-public",
            metavar="PATTERN",
            help="Tolerate what everybody holds, such as 'EXECUTE on function public.*'; may be given again.",
        ),
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write the report as a page.")
    ] = None,
    as_json: options.Json = False,
    grace: options.Grace = None,
) -> None:
    """Issue each step's credentials for real and show that they can do what is declared, and nothing else.

    Exits with 3 when anything is held that was not declared. Everything issued is revoked afterwards.
    """
    from orchestrator.cli.commands.run import request_for

    if html is not None:
        check_place(html)
    request = request_for(file, options.inputs_from(inputs, inputs_file), inputs, None, "prove", placeholders=True)
    proof = _prove(request, tuple(step or ()), tuple(allow_public or ()), before, grace, quiet=as_json)
    if html is not None:
        _write_page(html, proof)
    if as_json:
        from orchestrator.cli.display.json_output import print_json

        print_json(proof.as_json())
    else:
        show(proof)
    if html is not None:
        sys.stderr.write(f"the report is in {one_line(str(html))}\n")
    if not proof.holds:
        raise typer.Exit(int(ExitCode.REFUSED))
    if proof.unconfirmed:
        raise typer.Exit(int(ExitCode.UNCONFIRMED))


def _write_page(file: Path, proof: Proof) -> None:
    from orchestrator.proof.page import page

    write(file, page(proof), hint=f"the proof was made, as {proof.run_id}; make it again")


def _prove(
    request: RunRequest,
    steps: tuple[str, ...],
    tolerate: tuple[str, ...],
    before: str | None,
    grace: float | None,
    *,
    quiet: bool,
) -> Proof:
    from orchestrator.assembly import interruptible_services
    from orchestrator.cli import interruption
    from orchestrator.cli.connect import log_to_stderr
    from orchestrator.configured.services import redactor, runner_config
    from orchestrator.proof.examine import Examination
    from orchestrator.proof.service import Prover
    from orchestrator.settings import load_settings

    settings = load_settings()
    log_to_stderr(settings.log_level)

    def progress(name: str) -> None:
        if not quiet and sys.stderr.isatty():
            sys.stderr.write(f"examining {one_line(name)}\n")

    async def go() -> Proof:
        config = runner_config(settings, grace=grace)
        async with interruptible_services(config, redactor=redactor()) as (services, interruptions):
            prover = Prover(services=services, wish=Examination(tolerate=tolerate, before=before), progress=progress)
            return await interruptions.carry_out(prover.prove(request, steps))

    return interruption.run(go)


def show(proof: Proof, screen: Console | None = None) -> None:
    """The report for people."""
    from rich.text import Text

    from orchestrator.cli.display.terminal import console
    from orchestrator.proof.report import proven_words, revoked_words

    screen = screen or console(sys.stdout)
    for grant in proof.grants:
        mark = _mark(grant)
        screen.print(Text.assemble((grant.step, "bold"), f" / {grant.grant}: ", mark), soft_wrap=True)
        screen.print(f"  {grant.declared}", markup=False, soft_wrap=True)
        for line in _lines(grant):
            screen.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
    screen.print(f"{proven_words(proof)}; recorded as {proof.run_id}, {revoked_words(proof)}")


def _mark(grant: GrantProof) -> tuple[str, str]:
    if not grant.holds:
        return ("NOT PROVEN", "red")
    return ("proven", "green") if grant.examined else ("issued; there is nothing to hold it to", "yellow")


def _lines(grant: GrantProof) -> list[str]:
    """What was found, with the labels in one column."""
    found = list(_findings(grant))
    width = max((len(label) for label, _ in found), default=0)
    return [f"{label:<{width}}  {words}" for label, words in found]


def _findings(grant: GrantProof) -> Iterator[tuple[str, str]]:
    if grant.refused:
        yield "not issued", grant.refused
    if grant.comparison is not None:
        yield "declared and held", str(len(grant.comparison.held))
        for holding in grant.comparison.missing:
            yield "declared but missing", str(holding)
        for each in grant.comparison.excess:
            yield (
                "held but not declared",
                f"{each.holding} through {each.via}{' (tolerated)' if each.tolerated else ''}",
            )
    for note in grant.notes:
        yield "note", note
    for name, share in ((f"before, as {grant.former}", grant.before), ("now, as this login", grant.after)):
        if share is not None:
            yield name, f"{share.held} of {share.total} privileges in the database ({share.percent:.2f} %)"
    for trial in grant.trials:
        yield trial.verdict.value, f"{trial.what}: {trial.answer}"
