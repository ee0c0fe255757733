"""`orchestrator demo`: a sample at work on real servers of its own, from the start of the servers to their end."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.commands.stack.dev import SAMPLE, require_servers, say, shown_pages

if TYPE_CHECKING:
    from orchestrator.devstack.agents import Attempt
    from orchestrator.devstack.mail_agent.script import Story
    from orchestrator.devstack.mail_agent.servers import MailServers
    from orchestrator.devstack.provisioned import Provisioned


class Sample(StrEnum):
    """What is shown."""

    FEEDBACK = "feedback"
    MAIL = "mail"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo")(demo)


def demo(
    sample: Annotated[
        Sample,
        typer.Argument(help="feedback: a workflow, and agents that call tools; mail: an agent that reads one mailbox."),
    ] = Sample.FEEDBACK,
) -> None:
    """Run a sample on real servers, show what was issued and who refused the rest, and stop everything."""
    require_servers(mail=sample is Sample.MAIL)
    raise typer.Exit(_mail() if sample is Sample.MAIL else _feedback())


def _feedback() -> int:
    from orchestrator.devstack.session import run_command, runtime_environment, temporary_stack, what_is_left
    from orchestrator.samples.place import samples

    root = samples()
    say("starting OpenBao, PostgreSQL and the sample services ...")
    with temporary_stack(root, None) as provisioned:
        say(f"installed {len(provisioned.changes)} things that the workflows declare (orchestrator provision apply)\n")
        environment = runtime_environment(provisioned, provisioned.info.directory)
        say(f"$ orchestrator run {SAMPLE}")
        code = run_command(["run", SAMPLE], environment, folder=root)
        say("\n$ orchestrator leases list")
        run_command(["leases", "list"], environment, folder=root)
        say("\nThe same workflow may not post elsewhere: the policy says so before anything is issued.")
        say(f"$ orchestrator run {SAMPLE} --input channel='#general'")
        refused = run_command(["run", SAMPLE, "--input", "channel=#general"], environment, folder=root)
        say(f"exit code {refused}\n\nAgents call tools while a task is open. Who refuses what they may not do:")
        as_expected = _agents(provisioned)
        say("\nWhat the servers say now:")
        left = what_is_left(provisioned)
        for line in left.lines():
            say(f"  {line}")
        if sys.stdout.isatty() and sys.stdin.isatty():
            _show_pages(provisioned)
    return 1 if code == 0 and (refused != 3 or not as_expected or not left.clean) else code


def _show_pages(provisioned: Provisioned) -> None:
    """For people at a terminal: the servers stay until they have seen it."""
    from orchestrator.devstack.session import run_until_stopped

    with shown_pages(provisioned) as pages:
        if pages is not None:
            say(f"\nAll of this as pages: {pages}  (Ctrl-C ends the demo)")
            run_until_stopped()


def _agents(provisioned: Provisioned) -> bool:
    """Show what two agents can do; whether each of those who can refuse them has."""
    from orchestrator.cli import interruption
    from orchestrator.configured.services import redactor
    from orchestrator.devstack.agents import attempts
    from orchestrator.devstack.session import runner_config
    from orchestrator.policy.opening import open_engine

    policy = open_engine("rego", path=provisioned.policies)
    config = runner_config(provisioned, provisioned.info.directory, policy)
    found = interruption.run(lambda: attempts(provisioned, config, redactor=redactor()))
    _show(found)
    return {each.by for each in found} == {"", "policy", "broker", "CRM"}


def _mail() -> int:
    """Exit code 0 where everybody refused what they should, and nothing is left that counts."""
    from orchestrator.cli.display.listing import print_list
    from orchestrator.devstack.mail_agent import record
    from orchestrator.devstack.mail_agent.script import REFUSALS
    from orchestrator.devstack.mail_agent.servers import mail_servers
    from orchestrator.devstack.session import temporary_stack, what_is_left
    from orchestrator.samples.place import samples

    root = samples()
    say("starting OpenBao, PostgreSQL, the sample services, an authorization server and a mail service ...\n")
    with (
        temporary_stack(root, None) as provisioned,
        mail_servers(provisioned, root / "vault", provisioned.info.directory) as servers,
    ):
        told = _story(servers)
        _show(told.attempts)
        say("\nWhat its task held (orchestrator leases list --task ...):")
        print_list(record.HELD, told.held)
        say("\nWhat the mail service has in its log:")
        print_list(record.SEEN, record.seen(servers.log()))
        left, alive, sent = what_is_left(provisioned), servers.authorization.tokens(), servers.state()["sent"]
        say(f"\nLeft: {len(alive)} tokens, {left.logins} logins, {left.leases} leases. Mails sent: {len(sent)}")
    refused = tuple(each.by for each in told.attempts if each.by)
    return 0 if refused == REFUSALS and left.clean and not alive and not sent else 1


def _story(servers: MailServers) -> Story:
    from orchestrator.cli import interruption
    from orchestrator.configured.services import redactor
    from orchestrator.devstack.mail_agent.script import story
    from orchestrator.devstack.session import runner_config
    from orchestrator.policy.opening import open_engine

    provisioned = servers.provisioned
    policy = open_engine("rego", path=provisioned.policies)
    config = runner_config(provisioned, provisioned.info.directory, policy)
    return interruption.run(lambda: story(servers, config, redactor=redactor()))


def _show(found: Sequence[Attempt]) -> None:
    from orchestrator.cli.display.listing import print_list

    outcomes = [f"refused by the {each.by}" if each.by else "done" for each in found]
    rows = [(each.agent, each.tries, outcome, each.told) for each, outcome in zip(found, outcomes, strict=True)]
    print_list(("AGENT", "TRIES TO", "OUTCOME", "TOLD"), rows, fold=("TRIES TO", "TOLD"))
