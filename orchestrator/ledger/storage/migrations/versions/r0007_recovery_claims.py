"""Which process closes what a dead one left: one at a time."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "r0007"
down_revision = "r0006"

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Add who recovers a dead process."""
    op.add_column("runner", sa.Column("recovered_by", TEXT))
