"""How often a queued run was claimed, and which run is that of a fire."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "r0008"
down_revision = "r0007"

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Count from now on, and give the runs of fires ids that nobody can know before."""
    op.add_column("queued_run", sa.Column("tries", sa.Integer, nullable=False, server_default="0"))
    op.create_table(
        "fire",
        sa.Column("workflow", TEXT, nullable=False),
        sa.Column("trigger", TEXT, nullable=False),
        sa.Column("at", TEXT, nullable=False),
        sa.Column("run_id", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("workflow", "trigger", "at"),
        sqlite_with_rowid=False,
    )
