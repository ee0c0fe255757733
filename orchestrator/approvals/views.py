"""Requests for approval as JSON, for scripts and over HTTP."""

from __future__ import annotations

from datetime import datetime

from orchestrator.approvals.desk import Standing
from orchestrator.jsontypes import JsonObject
from orchestrator.ledger.coordination.approvals import ApprovalRecord


def approval_json(record: ApprovalRecord, now: datetime) -> JsonObject:
    """One request for scripts, without the question."""
    return {
        "id": record.approval_id,
        "run": record.run_id,
        "workflow": record.workflow,
        "step": record.step,
        "state": record.at(now).value,
        "asked_by": record.asked_by.get("name"),
        "asked_at": record.asked_at.isoformat(),
        "expires_at": record.expires_at.isoformat(),
        "ended_at": record.ended_at.isoformat() if record.ended_at else None,
        "demand": record.demand,
        "subject": record.subject,
    }


def standing_json(standing: Standing) -> JsonObject:
    """One request for scripts, whole."""
    counting = {vote.by.key for vote in standing.counting}
    return {
        **approval_json(standing.record, standing.record.asked_at),
        "state": standing.state.value,
        "question": standing.record.question,
        "votes": [
            {
                "by": vote.by.name,
                "verdict": vote.verdict.value,
                "at": vote.at.isoformat(),
                "comment": vote.comment,
                "counts": vote.by.key in counting,
            }
            for _, vote in standing.votes
        ],
    }
