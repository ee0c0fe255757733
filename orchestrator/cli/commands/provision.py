"""`orchestrator provision`: install in Vault and in the databases what the workflows declare."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import options
from orchestrator.errors import ExitCode
from orchestrator.jsontypes import JsonObject

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.provision.change import Change

app = typer.Typer(
    help="For an admin: install in Vault what the workflows declare.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def register(program: typer.Typer) -> None:
    """Add the group of commands."""
    program.add_typer(app, name="provision")


Workflows = Annotated[Path, typer.Option("--workflows", metavar="DIR", help="The folder with the workflows.")]
Declarations = Annotated[
    Path, typer.Option("--declarations", metavar="DIR", help="The folder with what an admin declares.")
]
Prune = Annotated[bool, typer.Option("--prune", help="Also delete what is no longer declared.")]


@app.command("plan")
def plan(
    workflows: Workflows = Path("workflows"),
    declarations: Declarations = Path("vault"),
    prune: Prune = False,
    as_json: options.Json = False,
) -> None:
    """Show what would be changed, and change nothing."""
    from orchestrator.cli.connect import provisioning

    with provisioning(workflows, declarations, prune=prune) as work:
        show(work.plan(), as_json=as_json)


@app.command("apply")
def apply(
    workflows: Workflows = Path("workflows"),
    declarations: Declarations = Path("vault"),
    prune: Prune = False,
    as_json: options.Json = False,
) -> None:
    """Install what is declared; doing it again changes nothing."""
    from orchestrator.cli.connect import provisioning

    with provisioning(workflows, declarations, prune=prune) as work:
        changes = work.plan()
        work.apply(changes)
    show(changes, as_json=as_json, done=True)


@app.command("check")
def check(
    workflows: Workflows = Path("workflows"),
    declarations: Declarations = Path("vault"),
    prune: Prune = False,
    as_json: options.Json = False,
) -> None:
    """Exit with 4 where what is installed differs from what is declared, or is there although it is not declared."""
    from orchestrator.cli.connect import provisioning

    with provisioning(workflows, declarations, prune=prune) as work:
        drift = work.check()
    show(drift.changes, notes=drift.notes, as_json=as_json)
    if drift.changes:
        raise typer.Exit(int(ExitCode.STEP_FAILED))


def show(
    changes: Sequence[Change],
    *,
    notes: Sequence[str] = (),
    as_json: bool,
    done: bool = False,
    screen: Console | None = None,
) -> None:
    """The changes as a diff with a count, or as JSON."""
    if as_json:
        from orchestrator.cli.display.json_output import print_json

        print_json({"applied": done, "changes": [_json(change) for change in changes], "notes": list(notes)})
        return
    from orchestrator.cli.display.terminal import console

    screen = screen or console(sys.stdout)
    for change in changes:
        for line in change.render().splitlines():
            screen.print(line, style=_DIFF.get(line[:1], "default"), soft_wrap=True)
    counted: Counter[str] = Counter(change.kind for change in changes)
    words = {"create": "created", "change": "changed", "delete": "deleted"}
    parts = [f"{counted[kind]} {'' if done else 'to be '}{word}" for kind, word in words.items() if counted[kind]]
    if counted["undeclared"]:
        parts.append(f"{counted['undeclared']} not declared, to be looked at by a person")
    for note in notes:
        screen.print(f"note: {note}", soft_wrap=True)
    screen.print(", ".join(parts) or "nothing to change: what is declared is installed")


_DIFF = {"+": "green", "-": "red", "~": "yellow", "!": "magenta"}


def _json(change: Change) -> JsonObject:
    return {"kind": change.kind, "resource": change.resource, "before": change.before, "after": change.after}
