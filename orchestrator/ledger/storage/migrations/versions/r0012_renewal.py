"""That somebody wants what a run has handed over to be renewed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "r0012"
down_revision = "r0011"

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Nobody wants it yet."""
    op.add_column("run_owner", sa.Column("renewal", TEXT))
    op.drop_index("run_owner_to_cancel", "run_owner")
    where = sa.text("(cancel IS NOT NULL OR renewal = '')")
    op.create_index("run_owner_wanted", "run_owner", ["runner_id"], sqlite_where=where, postgresql_where=where)
