"""Who is running what: processes with their sign of life, and what it takes to go on for a dead one."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "r0003"
down_revision = "r0002"

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Create the tables of the processes, of their runs and of their Vault tokens."""
    op.create_table(
        "runner",
        sa.Column("runner_id", TEXT, primary_key=True),
        sa.Column("process", TEXT, nullable=False),
        sa.Column("beat", sa.BigInteger, nullable=False),
        sa.Column("gone", sa.Integer, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "runner_token",
        sa.Column("runner_id", TEXT, nullable=False),
        sa.Column("accessor", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("runner_id", "accessor"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "run_owner",
        sa.Column("run_id", TEXT, primary_key=True),
        sa.Column("runner_id", TEXT, nullable=False),
        sa.Column("cancel", TEXT),
        sqlite_with_rowid=False,
    )
    op.create_index("run_owner_by_runner", "run_owner", ["runner_id", "run_id"])
    op.create_table(
        "workflow_text",
        sa.Column("digest", TEXT, primary_key=True),
        sa.Column("text", TEXT, nullable=False),
        sqlite_with_rowid=False,
    )
