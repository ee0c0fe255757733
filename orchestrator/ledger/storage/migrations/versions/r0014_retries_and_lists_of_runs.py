"""The run that a retry goes on from, and indexes for lists of runs by trigger and by agent."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "r0014"
down_revision = "r0013"

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
BY_ITSELF = "workflow <> '(sweep)' AND task IS NULL"


def upgrade() -> None:
    """No run of before is a retry."""
    op.add_column("run", sa.Column("retry_of", TEXT))
    _create("run_by_trigger", ["trigger", "started_at", "run_id"], BY_ITSELF)
    _create("run_by_agent", ["agent", "started_at", "run_id"], BY_ITSELF)
    _create("run_by_retry_of", ["retry_of"], "retry_of IS NOT NULL", unique=True)


def _create(name: str, columns: list[str], condition: str, *, unique: bool = False) -> None:
    where = sa.text(condition)
    op.create_index(name, "run", columns, unique=unique, sqlite_where=where, postgresql_where=where)
