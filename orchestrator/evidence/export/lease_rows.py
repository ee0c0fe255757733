"""Leases as rows, made from their events while these go by: what is held is what is open, however many there were."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from orchestrator.errors import OrchestratorError
from orchestrator.grants.scope import scope_from_json
from orchestrator.jsontypes import JsonValue
from orchestrator.ledger.events import LeaseEvent, LeaseIssued, LeaseRenewed, LeaseRequested, LeaseRevoked
from orchestrator.ledger.lease import FINAL
from orchestrator.ledger.reading.history import ChainEvent, RunHead

_LEADS_TO = {each.kind: each.to for each in LeaseEvent.__args__}
FINAL_KINDS = frozenset(kind for kind, state in _LEADS_TO.items() if state in FINAL)
"""The events after which nothing more happens to a lease."""


@dataclass(slots=True)
class LeaseRow:
    """Who held what, when. Empty texts and None where it never came to that."""

    lease_id: str
    run_id: str
    workflow: str
    step: str
    attempt: int
    agent: str
    resource: str
    grant_kind: str
    scope: str
    state: str
    requested_at: datetime
    issued_at: datetime | None = None
    expires_at: datetime | None = None
    closed_at: datetime | None = None
    subject: str = ""
    confirmed_by: str = ""


class LeaseRows:
    """The leases of one run that are open at this point of its history."""

    def __init__(self) -> None:
        self._open: dict[str, LeaseRow] = {}

    def after(self, run: RunHead, event: ChainEvent) -> LeaseRow | None:
        """The lease that the event is about, as it stands after that; None for an event of another kind."""
        if event.kind == LeaseRequested.kind:
            self._open[str(event.data["lease_id"])] = _requested(run, event)
        row = self._open.get(str(event.data.get("lease_id")))
        if row is None or event.kind not in _LEADS_TO:
            return None
        _follow(row, event)
        return self._open.pop(row.lease_id) if event.kind in FINAL_KINDS else row

    def left(self) -> list[LeaseRow]:
        """Those that did not end, in the order in which they were requested; then there are none."""
        rows, self._open = list(self._open.values()), {}
        return rows


def _requested(run: RunHead, event: ChainEvent) -> LeaseRow:
    data = event.data
    return LeaseRow(
        lease_id=str(data["lease_id"]),
        run_id=run.run_id,
        workflow=run.workflow,
        step=str(data.get("step", "")),
        attempt=_number(data.get("attempt")),
        agent=run.agent,
        resource=str(data.get("resource", "")),
        grant_kind=str(data.get("grant_kind", "")),
        scope=scope_words(data.get("scope")),
        state=LeaseRequested.to.value,
        requested_at=event.time,
    )


def _follow(row: LeaseRow, event: ChainEvent) -> None:
    row.state = _LEADS_TO[event.kind].value
    if event.kind == LeaseIssued.kind:
        row.issued_at = event.time
        row.subject = str(event.data.get("subject", ""))
    if event.kind in (LeaseIssued.kind, LeaseRenewed.kind):
        row.expires_at = datetime.fromisoformat(str(event.data["expires_at"]))
    if event.kind == LeaseRevoked.kind:
        row.confirmed_by = str(event.data.get("confirmed_by", ""))
    if event.kind in FINAL_KINDS:
        row.closed_at = event.time


def scope_words(scope: JsonValue) -> str:
    """A recorded scope in one line, such as `database support as feedback-read, 2m`; as JSON where it has no words."""
    if not isinstance(scope, Mapping):
        return ""
    try:
        return scope_from_json(scope).describe()
    except (OrchestratorError, ValueError, TypeError, KeyError, AttributeError):  # of a version that is not ours
        return json.dumps(scope, sort_keys=True)


def _number(value: JsonValue) -> int:
    return value if isinstance(value, int) else 0
