"""`orchestrator approvals`: what waits for somebody to agree, and agreeing to it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import options
from orchestrator.errors import UsageError
from orchestrator.ledger.states import ApprovalState, IdKind

if TYPE_CHECKING:
    from orchestrator.approvals.desk import Standing
    from orchestrator.approvals.votes import Verdict
    from orchestrator.ledger.types import LedgerReader
    from orchestrator.secret import Secret

app = typer.Typer(
    help="What waits for somebody to agree, and agreeing to it.", no_args_is_help=True, rich_markup_mode=None
)


def register(program: typer.Typer) -> None:
    """Add the group of commands."""
    program.add_typer(app, name="approvals")


ApprovalId = Annotated[str, typer.Argument(metavar="ID", help="The id of the request, or the beginning of it.")]
Comment = Annotated[str, typer.Option("--comment", metavar="TEXT", help="What there is to say to it. Is recorded.")]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        metavar="FILE",
        help="Your own Vault token, which says who you are. Default: VAULT_TOKEN, then ~/.vault-token.",
    ),
]


@app.command("list")
def list_approvals(
    state: Annotated[ApprovalState | None, typer.Option(help="Only in this state.")] = None,
    run: options.OfRun = None,
    limit: options.Limit = 200,
    as_json: options.Json = False,
) -> None:
    """List requests, newest first."""
    from orchestrator.approvals.views import approval_json
    from orchestrator.cli.connect import open_store
    from orchestrator.cli.display.approval_view import print_approvals
    from orchestrator.cli.display.json_output import print_json
    from orchestrator.clock import SystemClock
    from orchestrator.ledger.reading.id_lookup import whole_id

    now = SystemClock().now()
    with open_store() as ledger:
        of_run = whole_id(ledger, IdKind.RUN, run) if run is not None else None
        found = ledger.approvals.all(state=state, run=of_run, limit=limit)
    if as_json:
        print_json([approval_json(each, now) for each in found])
    else:
        print_approvals(found, now)


@app.command("show")
def show(approval_id: ApprovalId, as_json: options.Json = False) -> None:
    """Show one request: what is asked for, who may approve it, and what was said."""
    from orchestrator.cli import interruption
    from orchestrator.cli.connect import connected_services

    async def look() -> Standing:
        async with connected_services() as (services, interruptions):
            return await interruptions.carry_out(services.approvals.look(_whole(services.reader, approval_id)))

    _print(interruption.run(look), as_json=as_json)


@app.command("approve")
def approve(
    approval_id: ApprovalId, comment: Comment = "", token_file: TokenFile = None, as_json: options.Json = False
) -> None:
    """Agree to a request, as whom Vault knows by your own token."""
    from orchestrator.approvals.votes import Verdict

    _vote(approval_id, Verdict.APPROVE, comment, token_file, as_json=as_json)


@app.command("deny")
def deny(
    approval_id: ApprovalId, comment: Comment = "", token_file: TokenFile = None, as_json: options.Json = False
) -> None:
    """Refuse a request, as whom Vault knows by your own token."""
    from orchestrator.approvals.votes import Verdict

    _vote(approval_id, Verdict.DENY, comment, token_file, as_json=as_json)


def _vote(approval_id: str, verdict: Verdict, comment: str, token_file: Path | None, *, as_json: bool) -> None:
    from orchestrator.approvals.people import owner_of
    from orchestrator.cli import interruption
    from orchestrator.cli.connect import connected_services
    from orchestrator.configured.services import redactor

    token = _own_token(token_file)
    redactor().add(token)

    async def vote() -> Standing:
        async with connected_services() as (services, interruptions):

            async def go() -> Standing:
                deadline = services.clock.monotonic() + 30
                person = await owner_of(services.broker.vault, token, deadline=deadline)
                return await services.approvals.vote(_whole(services.reader, approval_id), person, verdict, comment)

            return await interruptions.carry_out(go())

    _print(interruption.run(vote), as_json=as_json)


def _whole(reader: LedgerReader, approval_id: str) -> str:
    from orchestrator.ledger.reading.id_lookup import whole_id

    return whole_id(reader, IdKind.APPROVAL, approval_id)


def _print(standing: Standing, *, as_json: bool) -> None:
    from orchestrator.approvals.views import standing_json
    from orchestrator.cli.display.approval_view import print_standing
    from orchestrator.cli.display.json_output import print_json

    if as_json:
        print_json(standing_json(standing))
    else:
        print_standing(standing)


def _own_token(file: Path | None) -> Secret:
    """The token of whoever sits there. Raises UsageError; never shows it."""
    from orchestrator.secret import Secret
    from orchestrator.settings import load_settings
    from orchestrator.vault.login_request import read_secret

    if file is not None:
        return read_secret(file, "Vault token file")
    if (given := load_settings().auth_token) is not None:
        return Secret(given.get_secret_value())
    usual = Path.home() / ".vault-token"
    if usual.is_file():
        return read_secret(usual, "Vault token file")
    raise UsageError(
        "who are you? there is no Vault token of yours",
        hint="`vault login` (or `bao login`) as yourself, or name a file with --token-file",
    )
