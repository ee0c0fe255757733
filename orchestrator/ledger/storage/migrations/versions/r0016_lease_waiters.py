"""The attempts that wait until there is room for their leases."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "r0016"
down_revision = "r0015"

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Nobody waits in line yet: who waited without a line enters it with its next try."""
    op.create_table(
        "lease_waiter",
        sa.Column("run_id", TEXT, nullable=False),
        sa.Column("step", TEXT, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("connection", TEXT, nullable=False),
        sa.Column("leases", sa.Integer, nullable=False),
        sa.Column("most", sa.Integer, nullable=False),
        sa.Column("ticket", sa.BigInteger, nullable=False),
        sa.Column("runner_id", TEXT, nullable=False),
        sa.Column("since", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("run_id", "step", "attempt", "connection"),
        sqlite_with_rowid=False,
    )
    op.create_index("lease_waiter_by_ticket", "lease_waiter", ["ticket"])
    op.create_index("lease_waiter_by_runner", "lease_waiter", ["runner_id"])
