"""`orchestrator dev`: real servers on this machine, to try things out."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.projects.packaged import repository

if TYPE_CHECKING:
    from orchestrator.devstack.mail_agent.servers import MailServers
    from orchestrator.devstack.provisioned import Provisioned

ROOT = repository()
SAMPLE = "workflows/customer_feedback.yaml"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("dev")(dev)


def dev(
    directory: Annotated[
        Path | None,
        typer.Option("--directory", metavar="DIR", help="Where the servers keep their files; new or empty."),
    ] = None,
    mail: Annotated[
        bool, typer.Option("--mail", help="With an authorization server and a mail service (extra dev-oauth).")
    ] = False,
) -> None:
    """Start real servers here to try things out.

    A Vault-compatible server, PostgreSQL with sample data, and sample services; Ctrl-C stops them.
    """
    from orchestrator.devstack.session import run_until_stopped, temporary_stack, write_environment

    with ExitStack() as stack:
        provisioned = stack.enter_context(temporary_stack(ROOT, directory))
        servers = stack.enter_context(_mail_servers(provisioned)) if mail else None
        files = write_environment(provisioned, provisioned.info.directory, servers.environment() if servers else {})
        say(_how_to_reach(provisioned, servers, *files))
        run_until_stopped()
        say("stopping")


def _mail_servers(provisioned: Provisioned) -> AbstractContextManager[MailServers]:
    from orchestrator.devstack.mail_agent.servers import mail_servers

    return mail_servers(provisioned, ROOT / "vault", provisioned.info.directory)


def _how_to_reach(provisioned: Provisioned, servers: MailServers | None, runtime: Path, admin: Path) -> str:
    info, mail = provisioned.info, ""
    if servers is not None:
        mail = f"  mail service      {servers.service.url}\n  authorization     {servers.authorization.issuer}\n"
    return f"""\
Everything runs; Ctrl-C stops it. Files are in {info.directory}

  Vault (OpenBao)   {info.vault_address}
  PostgreSQL        {info.support_endpoint}
                    customer_feedback (1974 messages), feedback_translation, ticket, payment_card, employee
  translation API   {info.translation_url}
  CRM               {info.crm_url}
  Slack stand-in    {info.slack_url}
  token issuer      {info.issuer_url}/.well-known/jwks.json
{mail}
In another terminal:
  set -a; . {runtime}; set +a                     # the runtime's login, and the addresses
  orchestrator plan {SAMPLE}
  orchestrator run {SAMPLE}
  orchestrator leases list
As the admin, in a third: set -a; . {admin}; set +a; orchestrator provision check
"""


def say(text: str) -> None:
    """A line, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
