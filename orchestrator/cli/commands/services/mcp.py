"""`orchestrator mcp`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import options

if TYPE_CHECKING:
    from orchestrator.agents.authentication import Caller


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("mcp")(mcp)


AgentName = Annotated[
    str, typer.Option("--agent", metavar="NAME", help="Who calls: policies decide on it, and it is recorded.")
]
HandOver = Annotated[
    bool, typer.Option("--hand-over", help="Offer tools that hand credentials over, too, which the model then sees.")
]


def mcp(
    file: options.WorkflowFile,
    agent: AgentName,
    inputs: options.Inputs = None,
    inputs_file: options.InputsFile = None,
    hand_over: HandOver = False,
    reason: options.Reason = "",
    grace: options.Grace = None,
) -> None:
    """Open a task, and serve its tools to an MCP client over standard input and output.

    The task is closed, and everything of it revoked, when the client goes away, at SIGTERM or SIGINT, and at its
    deadline. The agent is whoever runs this: nobody else can reach it.
    """
    try:
        from orchestrator.server.mcp.stdio import StdioTask, serve_stdio
    except ImportError as error:
        raise options.missing_extra("MCP", error, "mcp") from error
    from orchestrator.actions.catalog import catalog
    from orchestrator.cli import interruption
    from orchestrator.cli.connect import log_to_stderr
    from orchestrator.cli.tracing import traced
    from orchestrator.configured.services import redactor, runner_config
    from orchestrator.errors import UsageError
    from orchestrator.settings import load_settings
    from orchestrator.workflow.inputs import bind_inputs
    from orchestrator.workflow.loader import load

    loaded = load(file, actions=catalog)
    if not loaded.workflow.is_task:
        raise UsageError(f"`{loaded.workflow.name}` declares no tools", hint="`orchestrator run FILE` runs its steps")
    bound = bind_inputs(loaded.workflow, options.inputs_from(inputs, inputs_file), from_text=True)
    task = StdioTask(
        loaded=loaded,
        caller=_caller(agent),
        inputs=bound,
        reason=reason,
        hand_over=hand_over,
    )
    settings = load_settings()
    log_to_stderr(settings.log_level)
    # Kept until every thread has ended: the policy engine must end in this one.
    config = replace(runner_config(settings, grace=grace), parks=True)
    with traced() as spans:
        code = interruption.run(lambda: serve_stdio(config, task, redactor=redactor(), observer=spans))
    raise typer.Exit(int(code))


def _caller(agent: str) -> Caller:
    """Whoever runs the process: the operating system says who that is, and `--agent` what policies call it."""
    import os
    import pwd

    from pydantic import TypeAdapter, ValidationError

    from orchestrator.agents.authentication import Caller
    from orchestrator.agents.declared import AgentName
    from orchestrator.errors import UsageError

    try:
        TypeAdapter(AgentName).validate_python(agent)
    except ValidationError:
        raise UsageError("--agent is no name of an agent", hint="letters, digits and _.@:/-, at most 128") from None
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        user = str(os.getuid())
    return Caller(agent, "", user)
