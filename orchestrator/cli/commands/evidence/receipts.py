"""`orchestrator leases receipt`: one lease, as evidence for somebody else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.lookup import completion
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.jsontypes import JsonObject


def receipt(
    lease_id: Annotated[
        str,
        typer.Argument(
            metavar="ID", help="The lease's id, or the beginning of it.", autocompletion=completion.lease_ids
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Where it is written; default: standard output."),
    ] = None,
    values: Annotated[
        bool,
        typer.Option("--with-values", help="Also what its run was given and what steps gave, as far as that is kept."),
    ] = False,
) -> None:
    """Print the receipt of a lease that is over: who got what, why, who confirmed its end, and the proof of all of it.

    One JSON document, with the events of the whole run and the proof that these are what was signed. Verified by
    `history verify` in a file whose name ends with `.receipt.json`, with the public key alone.
    """
    import json

    from orchestrator.cli.connect import ledger_reader
    from orchestrator.evidence.receipts import receipt as made
    from orchestrator.ledger.reading.id_lookup import whole_id
    from orchestrator.ledger.states import IdKind

    with ledger_reader() as reader:
        document: JsonObject = made(reader, reader.log, whole_id(reader, IdKind.LEASE, lease_id), values=values)
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{output} cannot be written: {error.strerror}") from None
