"""Where the file of a queued run's workflow was: its relative paths begin there."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "r0013"
down_revision = "r0012"

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Of what waits already nobody knows it."""
    op.add_column("queued_run", sa.Column("directory", TEXT, nullable=False, server_default=""))
