"""How long a lease has been on its way out, and leases by what a login's name and Vault call them."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "r0005"
down_revision = "r0004"

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Give leases the columns that tell of the tries to revoke them, filled from the events, and two indexes."""
    op.add_column("lease", sa.Column("revoking_since", TEXT))
    op.add_column("lease", sa.Column("failed_tries", sa.Integer, nullable=False, server_default="0"))
    op.add_column("lease", sa.Column("last_try_at", TEXT))
    op.create_index("lease_by_step_key", "lease", ["step_key", "requested_at", "lease_id"])
    op.create_index("lease_by_vault_lease_id", "lease", ["vault_lease_id", "requested_at", "lease_id"])
    _fill()


def _fill() -> None:
    """From the events of the leases that are being revoked; those that are over have nothing left to wait for."""
    connection = op.get_bind()
    open_ones = connection.execute(sa.text("SELECT lease_id, run_id FROM lease WHERE state = 'revoking'")).all()
    for lease_id, run_id in open_ones:
        since, last, failed = None, None, 0
        events = connection.execute(
            sa.text(
                "SELECT kind, time, data FROM event WHERE run_id = :run_id"
                " AND kind IN ('lease.revoking', 'lease.revocation_failed') ORDER BY seq"
            ),
            {"run_id": run_id},
        )
        for kind, time, data in events:
            if json.loads(data)["lease_id"] == lease_id:
                since = since or time
                if kind == "lease.revocation_failed":
                    last, failed = time, failed + 1
        connection.execute(
            sa.text(
                "UPDATE lease SET revoking_since = :since, failed_tries = :failed, last_try_at = :last"
                " WHERE lease_id = :lease_id"
            ),
            {"since": since, "failed": failed, "last": last, "lease_id": lease_id},
        )
