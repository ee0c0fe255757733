"""What can be asked of the ledger, as SQL. Every filter has an index that also gives the order."""

from __future__ import annotations

import sys

from sqlalchemy import ColumnElement, Select, select

from orchestrator.ledger.events import RunState
from orchestrator.ledger.storage.codec import time_to_text
from orchestrator.ledger.storage.tables import event, lease, run, step
from orchestrator.ledger.types import LeaseFilter

LEASE_PREFIX = "lease_"
SWEEP_WORKFLOW = "(sweep)"
"""The name, which no workflow can have, of the runs that look for expired logins: `orchestrator.recovery.orphans`."""

SHORTEST_PREFIX = 6
"""Characters of a lease id, after `lease_`, that may stand for it."""


def run_by_id(run_id: str) -> Select[tuple[object, ...]]:
    return select(run).where(run.c.run_id == run_id)


def recent_runs(workflow: str | None, state: RunState | None, limit: int) -> Select[tuple[object, ...]]:
    """Newest first. Sweeps, which come and go all day, are only among them where their workflow is named."""
    query = select(run).order_by(run.c.started_at.desc(), run.c.run_id.desc()).limit(limit)
    query = query.where(run.c.workflow != SWEEP_WORKFLOW if workflow is None else run.c.workflow == workflow)
    if state is not None:
        query = query.where(run.c.state == state.value)
    return query


def steps_of(run_id: str) -> Select[tuple[object, ...]]:
    return select(step).where(step.c.run_id == run_id)


def events_of(run_id: str, kind: str | None = None) -> Select[tuple[object, ...]]:
    """In order of their sequence number; with `kind` only those of it."""
    query = select(event).where(event.c.run_id == run_id).order_by(event.c.seq)
    return query if kind is None else query.where(event.c.kind == kind)


def lease_by_id(lease_id: str) -> Select[tuple[object, ...]]:
    return select(lease).where(lease.c.lease_id == lease_id)


def leases_by_prefix(prefix: str) -> Select[tuple[object, ...]] | None:
    """At most two leases whose id starts so, with or without `lease_`; None where the prefix is too short."""
    rest = prefix.removeprefix(LEASE_PREFIX)
    if len(rest) < SHORTEST_PREFIX:
        return None
    return select(lease).where(*_starts_with(lease.c.lease_id, LEASE_PREFIX + rest)).limit(2)


def filtered_leases(wanted: LeaseFilter) -> Select[tuple[object, ...]]:
    """Newest first. `since` is included, `until` is not."""
    columns = lease.c
    conditions: list[ColumnElement[bool]] = [
        column == value
        for column, value in (
            (columns.run_id, wanted.run),
            (columns.workflow, wanted.workflow),
            (columns.step, wanted.step),
            (columns.agent, wanted.agent),
            (columns.grant_kind, wanted.grant_kind),
            (columns.step_key, wanted.step_key),
            (columns.vault_lease_id, wanted.vault_lease_id),
        )
        if value is not None
    ]
    if wanted.states is not None:
        conditions.append(columns.state.in_(sorted(state.value for state in wanted.states)))
    if wanted.resource:
        conditions.extend(_starts_with(columns.resource, wanted.resource))
    if wanted.since is not None:
        conditions.append(columns.requested_at >= time_to_text(wanted.since))
    if wanted.until is not None:
        conditions.append(columns.requested_at < time_to_text(wanted.until))
    newest_first = (columns.requested_at.desc(), columns.lease_id.desc())
    return select(lease).where(*conditions).order_by(*newest_first).limit(wanted.limit)


def _starts_with(column: ColumnElement[str], prefix: str) -> list[ColumnElement[bool]]:
    """A range of code points, which an index serves; LIKE would depend on the collation and on escapes."""
    end = after_prefix(prefix)
    return [column >= prefix] if end is None else [column >= prefix, column < end]


def after_prefix(prefix: str) -> str | None:
    """The first string, by code point, after all that start with the prefix; None if there is none."""
    kept = prefix.rstrip(chr(sys.maxunicode))
    if not kept:
        return None
    following = ord(kept[-1]) + 1
    if 0xD800 <= following <= 0xDFFF:  # surrogates are no characters
        following = 0xE000
    return kept[:-1] + chr(following)
