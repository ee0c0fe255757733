"""`orchestrator dev` and `orchestrator demo`: real servers on this machine, to try things out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from orchestrator.devstack.provisioned import Provisioned

_ROOT = Path(__file__).parents[3]
_SAMPLE = "workflows/customer_feedback.yaml"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("dev")(dev)
    app.command("demo")(demo)


def dev(
    directory: Annotated[
        Path | None,
        typer.Option("--directory", metavar="DIR", help="Where the servers keep their files; new or empty."),
    ] = None,
) -> None:
    """Start real servers here to try things out.

    A Vault-compatible server, PostgreSQL with sample data, and sample services; Ctrl-C stops them.
    """
    from orchestrator.devstack.session import run_until_stopped, temporary_stack, write_environment

    with temporary_stack(_ROOT, directory) as provisioned:
        files = write_environment(provisioned, provisioned.info.directory)
        _say(_how_to_reach(provisioned, *files))
        run_until_stopped()
        _say("stopping")


def demo() -> None:
    """Run the sample workflow on real servers, show the lease history, let agents call tools, and stop everything."""
    from orchestrator.devstack.session import run_command, runtime_environment, temporary_stack, what_is_left

    _say("starting OpenBao, PostgreSQL and the sample services ...")
    with temporary_stack(_ROOT, None) as provisioned:
        _say(f"installed {len(provisioned.changes)} things that the workflows declare (orchestrator provision apply)\n")
        environment = runtime_environment(provisioned, provisioned.info.directory)
        _say(f"$ orchestrator run {_SAMPLE}")
        code = run_command(["run", _SAMPLE], environment, folder=_ROOT)
        _say("\n$ orchestrator leases list")
        run_command(["leases", "list"], environment, folder=_ROOT)
        _say("\nThe same workflow may not post elsewhere: the policy says so before anything is issued.")
        _say(f"$ orchestrator run {_SAMPLE} --input channel='#general'")
        refused = run_command(["run", _SAMPLE, "--input", "channel=#general"], environment, folder=_ROOT)
        _say(f"exit code {refused}\n\nAgents call tools while a task is open. Who refuses what they may not do:")
        as_expected = _agents(provisioned)
        _say("\nWhat the servers say now:")
        left = what_is_left(provisioned)
        for line in left.lines():
            _say(f"  {line}")
    if code == 0 and (refused != 3 or not as_expected or not left.clean):
        code = 1
    raise typer.Exit(code)


def _agents(provisioned: Provisioned) -> bool:
    """Show what two agents can do; whether each of those who can refuse them has."""
    from orchestrator.cli import interruption
    from orchestrator.cli.connect import redactor
    from orchestrator.cli.display.listing import print_list
    from orchestrator.devstack.agents import attempts
    from orchestrator.devstack.session import runner_config
    from orchestrator.policy.opening import open_engine

    policy = open_engine("rego", path=provisioned.policies)
    config = runner_config(provisioned, provisioned.info.directory, policy)
    found = interruption.run(lambda: attempts(provisioned, config, redactor=redactor()))
    outcomes = [f"refused by the {each.by}" if each.by else "done" for each in found]
    rows = [(each.agent, each.tries, outcome, each.told) for each, outcome in zip(found, outcomes, strict=True)]
    print_list(("AGENT", "TRIES TO", "OUTCOME", "TOLD"), rows, fold=("TRIES TO", "TOLD"))
    return {each.by for each in found} == {"", "policy", "broker", "CRM"}


def _how_to_reach(provisioned: Provisioned, runtime: Path, admin: Path) -> str:
    info = provisioned.info
    return f"""\
Everything runs; Ctrl-C stops it. Files are in {info.directory}

  Vault (OpenBao)   {info.vault_address}
  PostgreSQL        {info.support_endpoint}
                    customer_feedback (1974 messages), feedback_translation, ticket, payment_card, employee
  translation API   {info.translation_url}
  CRM               {info.crm_url}
  Slack stand-in    {info.slack_url}
  token issuer      {info.issuer_url}/.well-known/jwks.json

In another terminal:
  set -a; . {runtime}; set +a                     # the runtime's login, and the addresses
  orchestrator plan {_SAMPLE}
  orchestrator run {_SAMPLE}
  orchestrator leases list
As the admin, in a third: set -a; . {admin}; set +a; orchestrator provision check
"""


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
