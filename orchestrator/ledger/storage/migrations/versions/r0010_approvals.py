"""What waits for somebody to agree, and who has."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "r0010"
down_revision = "r0009"

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Nothing waits yet."""
    op.create_table(
        "approval",
        sa.Column("approval_id", TEXT, primary_key=True),
        sa.Column("run_id", TEXT, nullable=False),
        sa.Column("workflow", TEXT, nullable=False),
        sa.Column("step", TEXT, nullable=False),
        sa.Column("subject", TEXT, nullable=False),
        sa.Column("question", TEXT, nullable=False),
        sa.Column("demand", TEXT, nullable=False),
        sa.Column("asked_by", TEXT, nullable=False),
        sa.Column("asked_at", TEXT, nullable=False),
        sa.Column("expires_at", TEXT, nullable=False),
        sa.Column("state", TEXT, nullable=False),
        sa.Column("ended_at", TEXT),
        sa.Column("signature", TEXT, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "approval_vote",
        sa.Column("approval_id", TEXT, nullable=False),
        sa.Column("voter", TEXT, nullable=False),
        sa.Column("verdict", TEXT, nullable=False),
        sa.Column("at", TEXT, nullable=False),
        sa.Column("statement", TEXT, nullable=False),
        sa.Column("signature", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("approval_id", "voter"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "request_seen",
        sa.Column("request", TEXT, primary_key=True),
        sa.Column("at", TEXT, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("approval_by_state", "approval", ["state", "asked_at", "approval_id"])
    op.create_index("approval_by_run", "approval", ["run_id", "step", "subject"])
