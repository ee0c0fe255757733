"""`orchestrator history prune`: what is personal and no evidence goes when its retention is over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import options
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.evidence.retention import Pruned, Retention

_LIKE = "such as 30d, 12w or 36h"
KeepInputs = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help=f"Drop what runs were given so long after their end: {_LIKE}. Default: ORCHESTRATOR_KEEP_INPUTS.",
    ),
]
KeepOutputs = Annotated[
    str | None,
    typer.Option(
        metavar="TIME", help=f"Drop what their steps gave, likewise: {_LIKE}. Default: ORCHESTRATOR_KEEP_OUTPUTS."
    ),
]


def prune(
    keep_inputs: KeepInputs = None,
    keep_outputs: KeepOutputs = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what would be dropped.")] = False,
    as_json: options.Json = False,
) -> None:
    """Drop inputs and outputs of runs that ended long ago. Their histories stay, and stay verifiable.

    The events hold digests of such values, and say from then on that these were dropped, and why. What policies were
    asked goes with the inputs, and requests for approval. Cannot be undone; may be repeated.
    """
    from orchestrator.cli.display.json_output import plain, print_json
    from orchestrator.cli.display.listing import print_line
    from orchestrator.jsontypes import counted

    retention = _retention(keep_inputs, keep_outputs)
    found, inline = _due(retention) if dry_run else _pruned(retention)
    if as_json:
        said = plain(found)
        assert isinstance(said, dict)
        print_json({"dropped": not dry_run, **said, "inline": inline})
        return
    verb = "would be dropped" if dry_run else "dropped"
    print_line(f"{verb}: inputs of {counted(found.inputs, 'run')}, outputs of {counted(found.outputs, 'run')}")
    if inline:
        print_line(
            f"{counted(inline, 'run')} of before this was possible: what these were given, and gave, is in their "
            "events and cannot be dropped",
            style="yellow",
        )


def _retention(keep_inputs: str | None, keep_outputs: str | None) -> Retention:
    from orchestrator.evidence.retention import Retention
    from orchestrator.settings import days, load_settings

    settings = load_settings()
    try:
        retention = Retention(
            settings.keep_inputs if keep_inputs is None else days(keep_inputs),
            settings.keep_outputs if keep_outputs is None else days(keep_outputs),
        )
    except ValueError as error:
        raise UsageError(str(error), hint=f"write it {_LIKE}") from None
    if not retention.is_any:
        raise UsageError("nothing says how long values are kept", hint=f"give --keep-inputs or --keep-outputs, {_LIKE}")
    return retention


def _due(retention: Retention) -> tuple[Pruned, int]:
    from orchestrator.cli.connect import ledger_reader
    from orchestrator.clock import SystemClock
    from orchestrator.evidence.retention import due

    with ledger_reader() as reader:
        return due(reader, retention, SystemClock().now()), reader.inline_runs()


def _pruned(retention: Retention) -> tuple[Pruned, int]:
    from orchestrator.cli import interruption
    from orchestrator.cli.connect import connected_services
    from orchestrator.cli.display.streams import counting
    from orchestrator.evidence.retention import prune as drop

    async def work() -> tuple[Pruned, int]:
        async with connected_services() as (services, interruptions):
            with counting() as progress:
                dropping = drop(services.ledger, services.reader, retention, services.clock.now(), progress)
                found = await interruptions.carry_out(dropping)
            return found, services.reader.inline_runs()

    return interruption.run(work)
