"""Why a queued run was asked for."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "r0009"
down_revision = "r0008"

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Of those that wait already nobody said why."""
    op.add_column("queued_run", sa.Column("reason", TEXT, nullable=False, server_default=""))
