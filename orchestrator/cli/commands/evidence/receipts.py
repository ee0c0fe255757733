"""`orchestrator leases receipt`: one lease, as evidence for somebody else."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.display.printable import one_line
from orchestrator.cli.lookup import completion
from orchestrator.cli.written import check_place, write
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
    html: Annotated[
        Path | None,
        typer.Option(
            "--html",
            metavar="FILE",
            help="Also write it as a page for people. Without --output the document then is beside the page.",
        ),
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

    if html is not None:
        output = _beside(html, output)
    with ledger_reader() as reader:
        document: JsonObject = made(reader, reader.log, whole_id(reader, IdKind.LEASE, lease_id), values=values)
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    if output is None:
        typer.echo(text, nl=False)
        return
    write(output, text)
    if html is not None:
        _write_page(html, document, output, text)


def _beside(html: Path, output: Path | None) -> Path:
    """Where the document is that a page is about, by a name with which it can be verified. Raises UsageError."""
    from orchestrator.evidence.receipts import SUFFIX

    check_place(html)
    document = output or html.with_name(html.name.removesuffix(".html").removesuffix(".receipt") + SUFFIX)
    if not document.name.endswith(SUFFIX) or html.name.endswith(SUFFIX):
        raise UsageError(
            f"{html} cannot be the page of the document {document}",
            hint=f"`history verify` takes files whose names end with {SUFFIX}",
        )
    return document


def _write_page(html: Path, document: JsonObject, file: Path, text: str) -> None:
    import hashlib
    from urllib.parse import quote

    from orchestrator.presentation.receipt_page import Beside, receipt_page

    link = f"./{quote(file.name)}" if file.resolve().parent == html.resolve().parent else ""
    write(html, receipt_page(document, Beside(file.name, link, hashlib.sha256(text.encode()).hexdigest())))
    sys.stderr.write(f"the page is in {one_line(str(html))}, what proves it in {one_line(str(file))}\n")
