"""How often a queued run was claimed, so that one which no worker can begin comes to an end."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "r0008"
down_revision = "r0007"


def upgrade() -> None:
    """Count from now on."""
    op.add_column("queued_run", sa.Column("tries", sa.Integer, nullable=False, server_default="0"))
