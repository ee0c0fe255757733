"""States, scopes, inputs and lengths of time in words."""

from __future__ import annotations

import json
from datetime import datetime, timedelta

from orchestrator.jsontypes import JsonObject
from orchestrator.ledger.lease import LeaseState

LEASE_MARKS = {
    LeaseState.REQUESTED: "·",
    LeaseState.ISSUED: "●",
    LeaseState.REVOKING: "◐",
    LeaseState.REVOKED: "✓",
    LeaseState.EXPIRED: "✓",
    LeaseState.ENDED: "○",
    LeaseState.DENIED: "✗",
    LeaseState.FAILED: "✗",
}

LEASE_WORDS = {LeaseState.ENDED: "ended (secret still valid)"}


def lease_words(state: LeaseState) -> str:
    """`✓ revoked`, `○ ended (secret still valid)`."""
    return f"{LEASE_MARKS[state]} {LEASE_WORDS.get(state, state.value)}"


def took(start: datetime | None, end: datetime | None) -> str:
    """How long something took: `0.42s`, `12.3s`, `3m05s`, `2h05m`, or `-`."""
    return "-" if start is None or end is None else lasting(end - start)


def lasting(span: timedelta) -> str:
    """A length of time in the two units that matter."""
    seconds = max(0.0, span.total_seconds())
    if seconds < 10:
        return f"{seconds:.2f}s"
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s"


def scope_words(scope: JsonObject) -> str:
    """A recorded scope in one line: `database support as feedback-read, 2m`."""
    from orchestrator.grants.scope import scope_from_json

    return scope_from_json(scope).describe()


def scope_or_json(scope: JsonObject) -> str:
    """A scope in words; one that this version cannot read, as it was recorded."""
    try:
        return scope_words(scope)
    except (ValueError, TypeError, KeyError, AttributeError):
        return json.dumps(scope, ensure_ascii=False)


def inputs_words(inputs: JsonObject) -> str:
    """`limit=5  channel="#support"`: secret inputs were recorded as `***`."""
    return "  ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in inputs.items())
