"""`orchestrator dev`: real servers on this machine, to try things out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("dev")(dev)


def dev(
    directory: Annotated[
        Path | None,
        typer.Option("--directory", metavar="DIR", help="Where the servers keep their files; else a temporary folder."),
    ] = None,
) -> None:
    """Start real servers here to try things out.

    A Vault-compatible server, PostgreSQL with sample data, and sample services; Ctrl-C stops them.
    """
    import signal
    import tempfile
    from contextlib import ExitStack

    from orchestrator.devstack.stack import DevStack

    with ExitStack() as stack:
        folder = directory or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="orchestrator-dev-")))
        wanted = {signal.SIGINT, signal.SIGTERM}
        info = stack.enter_context(DevStack(folder))
        signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
        for name, value in info.environment().items():
            sys.stdout.write(f"export {name}={value}\n")
        sys.stdout.write("# running; Ctrl-C stops everything\n")
        sys.stdout.flush()
        signal.sigwait(wanted)
