"""`orchestrator provision`: install in Vault and in the databases what the workflows declare."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import options
from orchestrator.errors import ExitCode, UsageError
from orchestrator.jsontypes import JsonObject

if TYPE_CHECKING:
    from rich.console import Console

    from orchestrator.provision.change import Change
    from orchestrator.provision.service import RuntimeLogin

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
        preview = work.preview()
    show(preview.changes, notes=preview.notes, as_json=as_json)


@app.command("apply")
def apply(
    workflows: Workflows = Path("workflows"),
    declarations: Declarations = Path("vault"),
    prune: Prune = False,
    as_json: options.Json = False,
) -> None:
    """Install what is declared, and say how the runtime logs in; doing it again changes nothing."""
    from orchestrator.cli.connect import provisioning

    with provisioning(workflows, declarations, prune=prune) as work:
        preview = work.preview()
        work.apply(preview.changes)
        login = work.runtime_login()
    show(preview.changes, notes=preview.notes, as_json=as_json, done=True, login=login)


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


@app.command("import-key")
def import_key(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The key, as `transit_keys` declares it.")],
    declarations: Declarations = Path("vault"),
    rotate: Annotated[
        bool, typer.Option("--rotate", help="Make it the newest version of the key that is there.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Bring a key that somebody else made into Vault: it is read from the standard input, and sent wrapped.

    A secret access key of AWS, another shared secret, a private key in PEM, or the JSON of a service account. It can
    be used there from then on, and never be read again.
    """
    from orchestrator.cli.connect import vault_admin
    from orchestrator.cli.display.json_output import print_json
    from orchestrator.cli.display.terminal import console
    from orchestrator.provision.declarations import load_declarations
    from orchestrator.provision.vault.imported_keys import bring, declared_use

    declared, _ = load_declarations(declarations)
    use = declared_use(declared, name)
    text = _from_standard_input(name)
    with vault_admin() as admin:
        version = bring(admin, declared, name, text, use, rotate=rotate)
    if as_json:
        print_json({"key": name, "type": declared.transit_keys[name].type, "version": version})
        return
    console().print(f"the key {name} is in Vault, version {version}", markup=False, highlight=False)


def _from_standard_input(name: str) -> str:
    """Never echoed, never an argument. Raises UsageError where there is nothing."""
    from getpass import getpass

    from orchestrator.provision.vault.key_import import LONGEST_INPUT

    text = getpass(f"{name}: ") if sys.stdin.isatty() else sys.stdin.read(LONGEST_INPUT + 1)
    if not text.strip() or len(text) > LONGEST_INPUT:
        what = "there is nothing" if not text.strip() else "that is too much"
        raise UsageError(f"{what} on the standard input", hint="such as: orchestrator provision import-key NAME < FILE")
    return text


def show(
    changes: Sequence[Change],
    *,
    notes: Sequence[str] = (),
    as_json: bool,
    done: bool = False,
    login: RuntimeLogin | None = None,
    screen: Console | None = None,
) -> None:
    """The changes as a diff with a count, and how the runtime logs in where that is given; or as JSON."""
    if as_json:
        from orchestrator.cli.display.json_output import print_json

        told = {"applied": done, "changes": [_json(change) for change in changes], "notes": list(notes)}
        if login is not None:
            runtime = {"name": login.name, "role_id": login.role_id, "secret_id_path": login.secret_id_path}
            told["runtime"] = runtime
        print_json(told)
        return
    from orchestrator.cli.display.terminal import console

    screen = screen or console(sys.stdout)
    for change in changes:
        for line in change.render().splitlines():
            screen.print(line, style=_DIFF.get(line[:1], "default"), soft_wrap=True)
    counted: Counter[str] = Counter(change.kind for change in changes)
    words = {"create": "created", "change": "changed", "delete": "deleted"}
    parts = [f"{counted[kind]} {'' if done else 'to be '}{word}" for kind, word in words.items() if counted[kind]]
    if counted["import"]:
        parts.append(f"{counted['import']} to be brought there with `orchestrator provision import-key`")
    if counted["undeclared"]:
        parts.append(f"{counted['undeclared']} not declared, to be looked at by a person")
    for note in notes:
        screen.print(f"note: {note}", soft_wrap=True)
    screen.print(", ".join(parts) or "nothing to change: what is declared is installed")
    if login is not None:
        screen.print(_how_to_log_in(login), markup=False, highlight=False, soft_wrap=True)


def _how_to_log_in(login: RuntimeLogin) -> str:
    """For whoever sets the runtime up. A secret id is made by a person and comes wrapped; it is never shown here."""
    return f"""
The runtime logs in as the AppRole {login.name}:
  export ORCHESTRATOR_AUTH_ROLE_ID={login.role_id}
  export ORCHESTRATOR_AUTH_SECRET_ID_FILE=/run/secrets/secret-id
A secret id for that file, wrapped so that nobody sees it on its way (`bao` does the same):
  vault write -f -wrap-ttl=5m -field=wrapping_token {login.secret_id_path}
  VAULT_TOKEN=<that wrapping token> vault unwrap -field=secret_id > /run/secrets/secret-id    # where the runtime is
Then `orchestrator doctor workflows` says whether all is there."""


_DIFF = {"+": "green", "-": "red", "~": "yellow", "!": "magenta", "<": "cyan"}


def _json(change: Change) -> JsonObject:
    return {"kind": change.kind, "resource": change.resource, "before": change.before, "after": change.after}
