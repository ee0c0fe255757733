"""What is on record of a task: the exact permission of each credential and its end, and what the mail service saw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from orchestrator.grants.scope import scope_from_json
from orchestrator.ledger.types import LeaseFilter, LeaseRecord, LedgerReader

Row = tuple[str, ...]

HELD = ("TOOL", "TIMES", "EXACT PERMISSION", "END")
SEEN = ("METHOD", "TIMES", "MAILBOX", "TOKEN OF", "SCOPE", "ANSWER")

_MOST = 10_000
_OURS = ("database", "oauth2")
"""The kinds of grant of the sample; a step's own token is not what it can do."""


def held(reader: LedgerReader, task_id: str) -> Sequence[Row]:
    """What the task's calls held, by the ledger: alike ones in one row, the first of them first."""
    leases = reversed(reader.leases(LeaseFilter(task=task_id, limit=_MOST)))
    return _counted(
        ((each.step, scope_from_json(each.scope).describe(), end(reader, each)))
        for each in leases
        if each.grant_kind in _OURS and not each.grant.startswith("(")
    )


def end(reader: LedgerReader, lease: LeaseRecord) -> str:
    """How a credential stands, and who has confirmed that it is gone."""
    revoked = reader.events(lease.run_id, lease_id=lease.lease_id, kind="lease.revoked")
    return f"{lease.state}, confirmed by {revoked[-1].data['confirmed_by']}" if revoked else str(lease.state)


def seen(decisions: Iterable[Mapping[str, Any]]) -> Sequence[Row]:
    """The log of the mail service: alike requests in one row, the first of them first."""
    return _counted((each["method"], *_of(each)) for each in decisions)


def _of(decision: Mapping[str, Any]) -> Row:
    scope = " ".join(scope.removeprefix("https://www.googleapis.com/auth/") for scope in decision["scope"])
    answer = f"{decision['status']} {decision.get('reason', '')}".rstrip()
    return decision["user"], decision["subject"] or "nobody", scope or "none", answer


def _counted(rows: Iterable[Row]) -> Sequence[Row]:
    """With how often each is there behind its first cell."""
    return [(row[0], str(count), *row[1:]) for row, count in Counter(rows).items()]
