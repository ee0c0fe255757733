"""Indexes that serve each filter with its states, of closed leases only, and one of what is open."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "r0006"
down_revision = "r0005"

REPLACED = {
    "lease": (
        "lease_by_workflow",
        "lease_by_step",
        "lease_by_agent",
        "lease_by_state",
        "lease_by_resource",
        "lease_by_grant_kind",
        "lease_by_step_key",
        "lease_by_vault_lease_id",
    ),
    "run": ("run_by_time", "run_by_workflow", "run_by_state"),
}


def upgrade() -> None:
    """Replace the indexes of the filters."""
    for table, indexes in REPLACED.items():
        for index in indexes:
            op.drop_index(index, table)
    _index_leases()
    _index_runs()


def _index_leases() -> None:
    in_order = ["requested_at", "lease_id"]
    op.create_index("lease_by_step_key", "lease", ["step_key"])
    _create_partial("lease_by_vault_lease_id", "lease", ["vault_lease_id"], "vault_lease_id <> ''")
    _create_partial("lease_open", "lease", in_order, "closed_at IS NULL")
    for name, columns in {
        "lease_by_state": ["state"],
        "lease_by_workflow": ["workflow", "state"],
        "lease_by_workflow_step": ["workflow", "step", "state"],
        "lease_by_step": ["step", "state"],
        "lease_by_agent": ["agent", "state"],
        "lease_by_grant_kind": ["grant_kind", "state"],
        "lease_by_resource": ["resource", "state"],
    }.items():
        _create_partial(name, "lease", [*columns, *in_order], "closed_at IS NOT NULL")


def _index_runs() -> None:
    in_order = ["started_at", "run_id"]
    _create_partial("run_by_time", "run", in_order, "workflow <> '(sweep)'")
    _create_partial("run_by_state", "run", ["state", *in_order], "workflow <> '(sweep)'")
    op.create_index("run_by_workflow", "run", ["workflow", "state", *in_order])
    _create_partial("run_running", "run", ["run_id"], "state = 'running'")
    _create_partial("run_owner_to_cancel", "run_owner", ["runner_id"], "cancel IS NOT NULL")


def _create_partial(name: str, table: str, columns: list[str], condition: str) -> None:
    where = sa.text(condition)
    op.create_index(name, table, columns, sqlite_where=where, postgresql_where=where)
