"""How requests for approval look: in a list, and one by one."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from orchestrator.grants.fields import format_duration
from orchestrator.ledger.coordination.approvals import ApprovalRecord
from orchestrator.ledger.states import ApprovalState
from orchestrator.presentation.approvals import does, grants_of, member, wanted

if TYPE_CHECKING:
    from orchestrator.approvals.desk import Standing

_STYLES = {
    ApprovalState.OPEN: "cyan",
    ApprovalState.APPROVED: "green",
    ApprovalState.DENIED: "red",
    ApprovalState.EXPIRED: "yellow",
    ApprovalState.WITHDRAWN: "dim",
}


def print_approvals(found: Sequence[ApprovalRecord], now: datetime) -> None:
    """A list, as wide as the terminal."""
    from orchestrator.cli.display.listing import print_line, print_list
    from orchestrator.cli.display.terminal import local

    if not found:
        print_line("nothing was asked")
        return
    rows = [
        (
            each.approval_id,
            f"{each.workflow}/{each.step}",
            each.at(now).value,
            local(each.asked_at),
            wanted(each),
        )
        for each in found
    ]
    print_list(("ID", "STEP", "STATE", "ASKED", "WANTED"), rows, fold=("STEP", "WANTED"))


def print_standing(standing: Standing) -> None:
    """One request: what it is about, who may approve, what was said."""
    from rich.text import Text

    from orchestrator.cli.display.terminal import console, local

    record, question = standing.record, standing.record.question
    screen = console()
    screen.print(
        Text.assemble(
            (record.approval_id, "bold"), "  ", (standing.state.value, _STYLES[standing.state]), "  ", _what(record)
        )
    )
    agent, reason = question.get("agent"), member(question, "run", "reason")
    lines = [
        ("for", f"agent {agent}, run {record.run_id}" + (f", because: {reason}" if reason else "")),
        ("does", does(question)),
        *(("grant", grant) for grant in grants_of(question)),
        ("asked", f"{local(record.asked_at)} by {record.asked_by.get('name')}"),
        ("until", local(record.expires_at)),
        ("wanted", wanted(record)),
        ("counts", f"for {format_duration(int(str(record.demand.get('valid_for'))))} after it was given"),
    ]
    counting = {vote.by.key for vote in standing.counting}
    for _, vote in standing.votes:
        counts = "" if vote.by.key in counting or vote.verdict.value == "deny" else ", which does not count any more"
        comment = f": {vote.comment}" if vote.comment else ""
        lines.append((vote.verdict.value, f"{vote.by.name}, {local(vote.at)}{counts}{comment}"))
    for name, words in lines:
        if words:
            screen.print(Text.assemble((f"  {name} ", "dim"), words))


def _what(record: ApprovalRecord) -> str:
    return f"{record.workflow}/{record.step}"
