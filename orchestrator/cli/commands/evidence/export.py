"""`orchestrator history export`: the history for a SIEM, a spreadsheet or an auditor."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import options
from orchestrator.errors import ExitCode, UsageError
from orchestrator.jsontypes import JsonObject, counted

if TYPE_CHECKING:
    from orchestrator.evidence.export.stream import Tally
    from orchestrator.ledger.reading.history import Chapter


class Format(StrEnum):
    """What is written."""

    JSONL = "jsonl"
    OCSF = "ocsf"
    CSV = "csv"


def export(
    form: Annotated[
        Format,
        typer.Option(
            "--format", help="`jsonl`: a line for each event. `csv`: a row for each lease. `ocsf`: events of OCSF 1.5."
        ),
    ] = Format.JSONL,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="FILE",
            help="Write this file, which only you can read, once all is there to be written.",
        ),
    ] = None,
    run: options.OfRun = None,
    workflow: options.OfWorkflow = None,
    agent: Annotated[str | None, typer.Option(help="Only of this agent.")] = None,
    resource: Annotated[
        str | None, typer.Option(help="Only leases of which the Vault path begins so, and their events.")
    ] = None,
    since: options.Since = None,
    until: options.Until = None,
    with_values: Annotated[
        bool,
        typer.Option("--with-values", help="Also what runs were given and what steps gave, as far as that is kept."),
    ] = False,
) -> None:
    """Give out the history: all runs that began in that time, in this order, with sweeps and tasks.

    The last line says how much there was. Where it is missing the export was cut off. Exit code 4: events are missing
    from the ledger.
    """
    from orchestrator.cli.connect import ledger_reader
    from orchestrator.clock import SystemClock
    from orchestrator.evidence.export.stream import Tally, utc
    from orchestrator.ledger.reading.history import HistoryFilter
    from orchestrator.ledger.reading.id_lookup import whole_id
    from orchestrator.ledger.states import IdKind
    from orchestrator.presentation.moments import parse_moment

    if with_values and form is Format.CSV:
        raise UsageError("a row of a lease has neither inputs nor outputs", hint="leave --with-values out")
    now = SystemClock().now()
    with ledger_reader() as reader:
        query = HistoryFilter(
            run=whole_id(reader, IdKind.TASK, whole_id(reader, IdKind.RUN, run)) if run is not None else None,
            workflow=workflow,
            agent=agent,
            resource=resource,
            since=parse_moment(since, now=now) if since else None,
            until=parse_moment(until, now=now) if until else None,
        )
        chosen: JsonObject = {
            "run": query.run,
            "workflow": workflow,
            "agent": agent,
            "resource": resource,
            "since": utc(query.since),
            "until": utc(query.until),
        }
        tally = Tally({name: value for name, value in chosen.items() if value is not None})
        _write(_lines(form, reader.history(query), tally, resource, with_values=with_values), output)
    _tell(form, tally)


def _lines(
    form: Format, chapters: Iterable[Chapter], tally: Tally, resource: str | None, *, with_values: bool
) -> Iterator[str]:
    """The text of the export, piece by piece."""
    if form is Format.CSV:
        from orchestrator.evidence.export.spreadsheet import spreadsheet

        return spreadsheet(chapters, tally, resource=resource)
    if form is Format.OCSF:
        from orchestrator.evidence.export.ocsf import ocsf

        return ocsf(chapters, tally, resource=resource, with_values=with_values)
    from orchestrator.evidence.export.jsonl import jsonl

    return jsonl(chapters, tally, resource=resource, with_values=with_values)


def _write(lines: Iterable[str], output: Path | None) -> None:
    from orchestrator.evidence.export.destination import whole_file

    if output is None:
        for line in lines:
            sys.stdout.write(line)
        sys.stdout.flush()
        return
    with whole_file(output) as file:
        for line in lines:
            file.write(line)


def _tell(form: Format, tally: Tally) -> None:
    """For people, and the exit code."""
    what = "lease" if form is Format.CSV else "event"
    sys.stderr.write(f"{counted(tally.written, what)} of {counted(tally.runs, 'run')} exported\n")
    if tally.missing:
        sys.stderr.write(
            f"{counted(tally.missing, 'event')} missing from the ledger: `orchestrator runs verify` says where\n"
        )
        raise typer.Exit(int(ExitCode.STEP_FAILED))
