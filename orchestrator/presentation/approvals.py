"""What a request for approval is about, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.grants.scope import scope_from_json
from orchestrator.jsontypes import JsonObject

if TYPE_CHECKING:
    from orchestrator.ledger.coordination.approvals import ApprovalRecord


def approvers(record: ApprovalRecord) -> Sequence[str]:
    """Who may approve, as the policy names them."""
    return [str(each) for each in _list(record.demand.get("approvers"))]


def wanted(record: ApprovalRecord) -> str:
    """`1 of vault:ann, vault-policy:leads`."""
    return f"{record.demand.get('count')} of {', '.join(approvers(record))}"


def does(question: JsonObject) -> str:
    """What the step is about to do: the action with what it says of itself in public."""
    action = question.get("action")
    if not isinstance(action, dict):
        return ""
    rest = ", ".join(f"{name} {_words(value)}" for name, value in action.items() if name != "name")
    return f"{action.get('name')}" + (f" ({rest})" if rest else "")


def _words(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def grants_of(question: JsonObject) -> Sequence[str]:
    """The grants that it is about."""
    return [_grant(each) for each in _list(question.get("grants"))]


def _grant(grant: Any) -> str:
    whole = {key: value for key, value in grant.items() if key != "narrower"}
    return f"{grant['name']}: {scope_from_json(whole).describe()}"


def member(document: JsonObject, *path: str) -> Any:
    """What is in a document at this path, or None."""
    found: Any = document
    for name in path:
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, list) else []
