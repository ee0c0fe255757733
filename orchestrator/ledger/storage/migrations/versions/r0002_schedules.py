"""What the scheduler remembers of each workflow."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "r0002"
down_revision = "r0001"

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Create `schedule`."""
    op.create_table(
        "schedule",
        sa.Column("workflow", TEXT, primary_key=True),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("handled", TEXT, nullable=False),
        sa.Column("paused", sa.Integer, nullable=False),
        sa.Column("requested", TEXT),
        sqlite_with_rowid=False,
    )
