"""Runs that wait for a worker."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "r0004"
down_revision = "r0003"

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Create the queue."""
    op.create_table(
        "queued_run",
        sa.Column("run_id", TEXT, primary_key=True),
        sa.Column("workflow", TEXT, nullable=False),
        sa.Column("digest", TEXT, nullable=False),
        sa.Column("inputs", TEXT, nullable=False),
        sa.Column("trigger", TEXT, nullable=False),
        sa.Column("connections", TEXT, nullable=False),
        sa.Column("max_runs", sa.Integer, nullable=False),
        sa.Column("queued_at", TEXT, nullable=False),
        sa.Column("claimed_by", TEXT),
        sqlite_with_rowid=False,
    )
    op.create_index("queued_run_by_time", "queued_run", ["queued_at", "run_id"])
