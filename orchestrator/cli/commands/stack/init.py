"""`orchestrator init`: something to start from."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import options
from orchestrator.cli.display.printable import one_line
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.starter.project import Choices

_OF_A_FILE = frozenset({".yaml", ".yml"})


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("init")(init)


def init(
    path: Annotated[
        Path, typer.Argument(metavar="[PATH]", help="A new folder, or a file that ends with .yaml.")
    ] = Path("workflow.yaml"),
    connection: Annotated[
        str | None, typer.Option("--connection", metavar="NAME", help="Of a folder: what the database is called. [app]")
    ] = None,
    table: Annotated[
        str | None,
        typer.Option(
            "--table", metavar="SCHEMA.TABLE", help="Of a folder: the table that its step reads. [public.customer]"
        ),
    ] = None,
    columns: Annotated[
        str | None, typer.Option("--columns", metavar="A,B", help="Of a folder: which columns of it. [id]")
    ] = None,
    agent: Annotated[
        str | None,
        typer.Option("--agent", metavar="NAME", help="Of a folder: who the work is done for. [first-agent]"),
    ] = None,
    database: Annotated[
        str | None,
        typer.Option("--database", metavar="URL", help="Of a folder: postgresql://HOST/DATABASE, without credentials."),
    ] = None,
    vault: Annotated[
        str | None, typer.Option("--vault", metavar="URL", help="Of a folder: the address of Vault or OpenBao.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Of a file: overwrite it if it is there.")] = False,
    as_json: options.Json = False,
) -> None:
    """Write something to start from: a commented workflow, or a folder with all that leads to a first run.

    The folder holds a workflow, policies with their tests, what an admin installs in Vault, settings, and a README with
    the commands in their order.
    """
    chosen = {"connection": connection, "table": table, "columns": columns, "agent": agent}
    chosen |= {"database": database, "vault": vault}
    given = {name: value for name, value in chosen.items() if value is not None}
    if path.suffix in _OF_A_FILE:
        if given:
            raise UsageError(
                f"--{min(given)} is for a project, and {path} is one file", hint="name a folder: orchestrator init shop"
            )
        _write_file(path, overwrite=force)
        _told(path, [path.name], [f"orchestrator validate {shlex.quote(str(path))}"], as_json=as_json)
        return
    if force:
        raise UsageError("--force is for one file: a project is written into a new folder only", hint="leave it out")
    from orchestrator.starter.project import write_project

    files = write_project(path, _choices(given))
    edit = [name for name in ("database", "vault") if name not in given]
    _told(path, files, [f"cd {shlex.quote(str(path))}", "cat README.md"], edit=edit, as_json=as_json)


def _write_file(path: Path, *, overwrite: bool) -> None:
    from orchestrator.starter.workflow import STARTER

    try:
        with path.open("w" if overwrite else "x", encoding="utf-8") as file:
            file.write(STARTER)
    except FileExistsError:
        raise UsageError(f"{path} is there already", hint="--force overwrites it") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error


def _choices(given: dict[str, str]) -> Choices:
    from orchestrator.starter.project import Choices

    return Choices.parse(
        connection=given.get("connection", "app"),
        table=given.get("table", "public.customer"),
        columns=given.get("columns", "id"),
        agent=given.get("agent", "first-agent"),
        database=_address("--database", given.get("database", "postgresql://db.example/app"), of_postgresql=True),
        vault=_address("--vault", given.get("vault", "https://vault.example:8200"), of_postgresql=False),
    )


def _address(option: str, text: str, *, of_postgresql: bool) -> str:
    """The address, held to what a setting of its kind is held to. Raises UsageError, which never shows a password."""
    from orchestrator.network.postgres import SCHEMES
    from orchestrator.settings import endpoint_address, http_address

    try:
        address = endpoint_address(text) if of_postgresql else http_address(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None
    if of_postgresql and not address.startswith(SCHEMES):
        raise UsageError(f"{option}: the address of a database begins with postgresql://")
    return address


def _told(path: Path, files: list[str], steps: list[str], *, as_json: bool, edit: list[str] | None = None) -> None:
    if as_json:
        from orchestrator.cli.display.json_output import print_json

        print_json({"path": str(path), "files": files, "next": steps, "to_fill_in": edit or []})
        return
    where = one_line(str(path))
    if not edit and files == [path.name]:
        sys.stdout.write(f"{where} written; next: {one_line(steps[0])}\n")
        return
    sys.stdout.write(f"{where} written: {len(files)} files\n")
    if edit:
        names = " and ".join({"database": "the database", "vault": "Vault"}[name] for name in edit)
        sys.stdout.write(f"fill in where to find {names}: in settings.toml and in README.md\n")
    sys.stdout.write("next: " + " && ".join(one_line(step) for step in steps) + "\n")
