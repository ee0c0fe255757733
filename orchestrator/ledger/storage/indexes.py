"""The indexes of the tables. Kept apart from them, since only a migration needs to know them as SQLAlchemy does.

Of leases, what is open is few and changes often; what is closed is many and never changes again. So open leases are
in one small index, and a lease enters the indexes of the filters once, when it is closed. There each filter is
followed by the state, so that both together, or either, are answered in the order of time; `lease_by_origin` serves
several filters together. See `orchestrator.ledger.reading.lease_queries`.
"""

from __future__ import annotations

from sqlalchemy import Index, Table, TextClause

from orchestrator.ledger.storage.log_tables import log_leaf
from orchestrator.ledger.storage.tables import (
    BY_ITSELF,
    HAS_VALUES,
    HAS_VAULT_LEASE,
    IS_CLOSED,
    IS_OPEN,
    IS_RETRY,
    IS_RUNNING,
    IS_TASK,
    IS_UNLOGGED,
    IS_WANTED,
    OF_TASK,
    ORIGIN,
    approval,
    lease,
    lease_origin,
    lease_waiter,
    queued_run,
    run,
    run_owner,
)
from orchestrator.ledger.storage.tables import metadata as metadata


def _index(table: Table, name: str, *columns: str, where: TextClause | None = None, unique: bool = False) -> Index:
    indexed = (table.c[column] for column in columns)
    return Index(name, *indexed, unique=unique, sqlite_where=where, postgresql_where=where)


OF_AGENT = ("agent", "state", "started_at", "run_id", "trigger", "workflow", "task")
"""The last three only so that what else is asked of a run is seen in the index: a look at each row costs twenty times
as much. SQLite looks at those of the index's own condition, too."""

INDEXES = (
    _index(run, "run_by_time", "started_at", "run_id", where=BY_ITSELF),
    _index(run, "run_by_state", "state", "started_at", "run_id", where=BY_ITSELF),
    _index(run, "run_by_workflow", "workflow", "state", "started_at", "run_id", "agent", "trigger"),
    _index(run, "run_by_trigger", "trigger", "state", "started_at", "run_id", where=BY_ITSELF),
    _index(run, "run_by_agent", *OF_AGENT, where=BY_ITSELF),
    _index(run, "run_by_retry_of", "retry_of", where=IS_RETRY, unique=True),
    _index(run, "run_by_task", "task", "started_at", "run_id", where=OF_TASK),
    _index(run, "run_of_task_by_time", "started_at", "run_id", where=OF_TASK),
    _index(run, "task_by_agent", "agent", "state", "started_at", "run_id", where=IS_TASK),
    _index(run, "task_by_state", "state", "started_at", "run_id", where=IS_TASK),
    _index(run, "run_running", "run_id", where=IS_RUNNING),
    _index(run, "run_unlogged", "finished_at", "run_id", where=IS_UNLOGGED),
    _index(run, "run_with_values", "finished_at", "run_id", where=HAS_VALUES),
    _index(log_leaf, "log_leaf_by_run", "run_id", "position"),
    _index(run_owner, "run_owner_by_runner", "runner_id", "run_id"),
    _index(run_owner, "run_owner_wanted", "runner_id", where=IS_WANTED),
    _index(queued_run, "queued_run_by_time", "queued_at", "run_id"),
    _index(queued_run, "queued_run_by_workflow", "workflow", "queued_at", "run_id"),
    _index(approval, "approval_by_state", "state", "asked_at", "approval_id"),
    _index(approval, "approval_by_run", "run_id", "step", "subject"),
    _index(lease_waiter, "lease_waiter_by_ticket", "ticket"),
    _index(lease_waiter, "lease_waiter_by_runner", "runner_id"),
    _index(lease, "lease_by_time", "requested_at", "lease_id"),
    _index(lease, "lease_by_run", "run_id", "requested_at", "lease_id"),
    _index(lease, "lease_by_step_key", "step_key"),
    _index(lease, "lease_by_vault_lease_id", "vault_lease_id", where=HAS_VAULT_LEASE),
    _index(lease, "lease_open", "requested_at", "lease_id", where=IS_OPEN),
    _index(lease, "lease_by_state", "state", "requested_at", "lease_id", where=IS_CLOSED),
    _index(lease, "lease_by_workflow", "workflow", "state", "requested_at", "lease_id", where=IS_CLOSED),
    _index(lease, "lease_by_origin", *ORIGIN, "state", "requested_at", "lease_id", where=IS_CLOSED),
    _index(lease_origin, "lease_origin_by_all", *ORIGIN),
    _index(lease, "lease_by_step", "step", "state", "requested_at", "lease_id", where=IS_CLOSED),
    _index(lease, "lease_by_agent", "agent", "state", "requested_at", "lease_id", where=IS_CLOSED),
    _index(lease, "lease_by_grant_kind", "grant_kind", "state", "requested_at", "lease_id", where=IS_CLOSED),
    _index(lease, "lease_by_resource", "resource", "state", "requested_at", "lease_id", where=IS_CLOSED),
)
