"""`orchestrator history restart`: after an older copy of the ledger was restored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import options
from orchestrator.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.errors import OrchestratorError
    from orchestrator.ledger.events import LogRestarted


def restart(
    reason: Annotated[str, typer.Option("--reason", help="Why, for the record, such as which copy was restored.")],
    as_json: options.Json = False,
) -> None:
    """Let the log go on under another name, after an older copy of the ledger was restored.

    Published checkpoints of what that copy lacks would call the ledger set back for ever. From now on `history verify`
    tells them apart as lost, with the reason, which is signed. Whoever verifies needs the new public keys, and keeps
    those of before. Stop every process on this ledger first.
    """
    from orchestrator.cli import failures, interruption
    from orchestrator.cli.connect import connected_services, operator
    from orchestrator.cli.display.json_output import plain, print_json
    from orchestrator.cli.display.listing import print_line
    from orchestrator.evidence.log.restarting import restart as begin_anew
    from orchestrator.jsontypes import counted

    if not reason.strip():
        raise UsageError("the reason is empty", hint="say which copy was restored, and why")

    async def work() -> tuple[LogRestarted, Sequence[OrchestratorError]]:
        async with connected_services() as (services, interruptions):

            async def all_of_it() -> tuple[LogRestarted, Sequence[OrchestratorError]]:
                begun = await begin_anew(services.ledger, services.checkpointing, reason=reason, by=operator())
                return begun, await services.checkpointing.publish()

            return await interruptions.carry_out(all_of_it())

    restarted, problems = interruption.run(work)
    if as_json:
        said = plain(restarted)
        assert isinstance(said, dict)
        print_json({**said, "unpublished": [problem.message for problem in problems]})
    else:
        print_line(f"{restarted.before} ends with {counted(restarted.size, 'entry', 'entries')}")
        print_line(f"{restarted.log} goes on from there: `orchestrator history keys` prints its public keys")
    for problem in problems:
        failures.note(problem.message)
    if problems:
        raise typer.Exit(int(ExitCode.UNREACHABLE))
