"""Requests for approval, to be read. What counts is looked at where credentials are opened, by signatures."""

from __future__ import annotations

from datetime import datetime

from orchestrator.approvals.votes import Vote
from orchestrator.errors import UnknownRun, UsageError
from orchestrator.grants.fields import format_duration
from orchestrator.ledger.coordination.approvals import ApprovalRecord, VoteRecord
from orchestrator.ledger.states import ApprovalState
from orchestrator.presentation.approvals import approvers, does, grants_of, member, wanted
from orchestrator.server.pages.answers import Asked, Elsewhere, NotThere, Page, address
from orchestrator.server.pages.sessions import Role
from orchestrator.server.pages.sources import Sources
from orchestrator.server.pages.views.listing import ROWS, listed


def list_approvals(sources: Sources, asked: Asked) -> Page:
    """The newest that agree with the filters."""
    before = asked.text("before")
    try:
        after = None if before is None else sources.approvals.get(before)
    except UnknownRun:
        raise UsageError(
            "the request with which the page before ended is not there", hint="begin at the newest"
        ) from None
    state = asked.one_of("state", ApprovalState)
    found = sources.approvals.all(state=state, run=asked.text("run"), before=after, limit=ROWS + 1)
    values = {
        "asked": asked,
        "page": listed(asked, found, lambda each: each.approval_id),
        "states": list(ApprovalState),
        "wanted": wanted,
        "now": sources.clock.now(),
    }
    return Page("approvals.html", values)


def show_approval(sources: Sources, asked: Asked) -> Page:
    """One request, and what was said to it."""
    text = asked.names["approval"]
    try:
        record = sources.approvals.get(text)
    except UnknownRun as error:
        hint = "The list of approvals shows those of this ledger; what was asked may be dropped after its retention."
        raise NotThere(f"No request for approval is {text}, or only one begins so.", hint=hint) from error
    if record.approval_id != text:
        raise Elsewhere(address("approvals", record.approval_id))
    valid_for = record.demand.get("valid_for")
    events = sources.reader.events(record.run_id, kind="approval.voted")
    return Page(
        "approval.html",
        {
            "asked": asked,
            "session": asked.session,
            "can_vote": _can_vote(asked, record, sources.clock.now()),
            "record": record,
            "standing": record.at(sources.clock.now()),
            "does": does(record.question),
            "grants": grants_of(record.question),
            "reason": member(record.question, "run", "reason"),
            "agent": record.question.get("agent"),
            "approvers": approvers(record),
            "wanted": wanted(record),
            "valid_for": format_duration(valid_for) if isinstance(valid_for, int) else "",
            "votes": [(each, *_said(each)) for each in sources.approvals.votes(record.approval_id)],
            "said": [each for each in events if each.data.get("approval_id") == record.approval_id],
        },
    )


def _said(vote: VoteRecord) -> tuple[str, str]:
    """By whom, and with which comment: as the statement says, which anybody may have written who can write here."""
    try:
        said = Vote.of(vote.statement)
    except (ValueError, KeyError, TypeError):
        return vote.voter, ""
    return said.by.name, said.comment


def _can_vote(asked: Asked, record: ApprovalRecord, now: datetime) -> bool:
    """Whether there is anything to be said by them; whether it counts is looked at when they say it."""
    is_approver = asked.session is not None and asked.session.may(Role.APPROVER)
    return is_approver and record.at(now) is ApprovalState.OPEN
