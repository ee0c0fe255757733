"""Of a queued run what was asked for; which one is next, and who has it, is said elsewhere.

What is paused, and when a process last beat.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "r0015"
down_revision = "r0014"

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """What waits goes on waiting: a worker enters it in the queue as it is now."""
    for column in ("connections", "max_runs", "claimed_by"):
        op.drop_column("queued_run", column)
    op.add_column("queued_run", sa.Column("retry_of", TEXT, nullable=False, server_default=""))
    op.create_index("queued_run_by_workflow", "queued_run", ["workflow", "queued_at", "run_id"])
    op.create_table(
        "queue_pause",
        sa.Column("workflow", TEXT, primary_key=True),
        sa.Column("by", TEXT, nullable=False),
        sa.Column("reason", TEXT, nullable=False),
        sa.Column("at", TEXT, nullable=False),
        sqlite_with_rowid=False,
    )
    op.add_column("runner", sa.Column("beat_at", TEXT, nullable=False, server_default=""))
