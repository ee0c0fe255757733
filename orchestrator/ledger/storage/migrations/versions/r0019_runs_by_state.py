"""Runs of an agent, and those of a trigger, are listed by their state, too; several filters are seen in one index."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "r0019"
down_revision = "r0018"

BY_ITSELF = sa.text("workflow <> '(sweep)' AND task IS NULL")

INDEXES = (
    ("run_by_workflow", ("workflow", "state", "started_at", "run_id", "agent", "trigger"), None),
    ("run_by_agent", ("agent", "state", "started_at", "run_id", "trigger", "workflow", "task"), BY_ITSELF),
    ("run_by_trigger", ("trigger", "state", "started_at", "run_id"), BY_ITSELF),
)


def upgrade() -> None:
    """Each takes the place of one of this name."""
    for name, columns, where in INDEXES:
        op.drop_index(name, "run")
        op.create_index(name, "run", list(columns), sqlite_where=where, postgresql_where=where)
