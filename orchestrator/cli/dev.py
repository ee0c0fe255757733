"""`orchestrator dev`: real servers on this machine, to try things out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("dev")(dev)


def dev(
    directory: Annotated[
        Path | None, typer.Option("--directory", metavar="DIR", help="Where the servers keep their files.")
    ] = None,
) -> None:
    """Start real servers here to try things out.

    A Vault-compatible server, PostgreSQL with sample data, and sample services; Ctrl-C stops them.
    """
