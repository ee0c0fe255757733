"""How requests for approval look: in a list, and one by one."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from orchestrator.grants.fields import format_duration
from orchestrator.grants.scope import scope_from_json
from orchestrator.jsontypes import JsonObject
from orchestrator.ledger.coordination.approvals import ApprovalRecord
from orchestrator.ledger.states import ApprovalState

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
            f"{each.demand.get('count')} of {', '.join(map(str, _approvers(each)))}",
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
    agent, reason = question.get("agent"), _member(question, "run", "reason")
    lines = [
        ("for", f"agent {agent}, run {record.run_id}" + (f", because: {reason}" if reason else "")),
        ("does", _does(question)),
        *(("grant", _grant(grant)) for grant in _list(question.get("grants"))),
        ("asked", f"{local(record.asked_at)} by {record.asked_by.get('name')}"),
        ("until", local(record.expires_at)),
        ("wanted", f"{record.demand.get('count')} of {', '.join(map(str, _approvers(record)))}"),
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


def _approvers(record: ApprovalRecord) -> Sequence[Any]:
    return _list(record.demand.get("approvers"))


def _does(question: JsonObject) -> str:
    action = question.get("action")
    if not isinstance(action, dict):
        return ""
    rest = ", ".join(f"{name} {_words(value)}" for name, value in action.items() if name != "name")
    return f"{action.get('name')}" + (f" ({rest})" if rest else "")


def _words(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _grant(grant: Any) -> str:
    whole = {key: value for key, value in grant.items() if key != "narrower"}
    return f"{grant['name']}: {scope_from_json(whole).describe()}"


def _member(document: JsonObject, *path: str) -> Any:
    found: Any = document
    for name in path:
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, list) else []
