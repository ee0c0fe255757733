"""`orchestrator agents`: who may call, as an admin declares it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import options
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.agents.authentication import Caller
    from orchestrator.agents.declared import Agents

app = typer.Typer(help="Who may call, as an admin declares it.", no_args_is_help=True, rich_markup_mode=None)


def register(program: typer.Typer) -> None:
    """Add the group of commands."""
    program.add_typer(app, name="agents")


AgentsFile = Annotated[Path, typer.Argument(metavar="FILE", help="Such as vault/agents.yaml.")]
TokenFile = Annotated[
    Path | None,
    typer.Option("--token-file", metavar="FILE", help="A token of an agent; `-` reads it from the standard input."),
]


@app.command("check")
def check(file: AgentsFile, token_file: TokenFile = None, as_json: options.Json = False) -> None:
    """Check a declaration of agents, and with --token-file say who would call with that token.

    Its issuer is asked for its keys then. The exit code is 3 where the token is of no agent.
    """
    from orchestrator.agents.declared import load_agents
    from orchestrator.cli import interruption
    from orchestrator.cli.display.json_output import print_json
    from orchestrator.cli.display.terminal import console

    declared = load_agents(file)
    caller = None
    if token_file is not None:
        token = _token(token_file)
        caller = interruption.run(lambda: _who(declared, file.parent, token))
    if as_json:
        print_json({"agents": {name: _json(declared, name) for name in declared.agents}, "caller": caller})
        return
    for name, agent in declared.agents.items():
        console().print(f"{name}  may open {', '.join(agent.may_open)}", markup=False, highlight=False)
        for identity in agent.identities:
            claims = " and ".join(f"{key} = {value}" for key, value in (identity.claims or {}).items())
            told = f"{identity.issuer}: {claims}" if identity.spiffe is None else f"certificate: {identity.spiffe}"
            console().print(f"  by {told}", markup=False, highlight=False)
    if caller is not None:
        for_whom = f", on behalf of {caller.on_behalf_of}" if caller.on_behalf_of else ""
        console().print(f"the token is of {caller.agent}, by {caller.issuer}{for_whom}", markup=False, highlight=False)


async def _who(declared: Agents, folder: Path, token: str) -> Caller:
    from orchestrator.agents.authentication import Authentication

    return await Authentication(declared, folder).by_token(token)


def _token(file: Path) -> str:
    from orchestrator.workflow.files import MAX_BYTES, read_text

    text = sys.stdin.read(MAX_BYTES) if str(file) == "-" else read_text(file)
    if not text.strip():
        raise UsageError("there is no token", hint="--token-file names a file that holds it, or `-`")
    return text.strip()


def _json(declared: Agents, name: str) -> dict[str, object]:
    agent = declared.agents[name]
    return {
        "may_open": agent.may_open,
        "identities": [identity.model_dump(exclude_none=True) for identity in agent.identities],
    }
