"""The append-only events and the tables of the current state."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "r0001"
down_revision = None

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Create `run`, `event`, `step` and `lease`, and the triggers that keep events from being changed or deleted."""
    _create_run()
    _create_event()
    _create_step()
    _create_lease()
    for statement in GUARDS[op.get_bind().dialect.name]:
        op.execute(statement)


def _create_run() -> None:
    op.create_table(
        "run",
        sa.Column("run_id", TEXT, primary_key=True),
        sa.Column("fence", sa.Integer, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("head", TEXT, nullable=False),
        sa.Column("workflow", TEXT, nullable=False),
        sa.Column("digest", TEXT, nullable=False),
        sa.Column("agent", TEXT, nullable=False),
        sa.Column("trigger", TEXT, nullable=False),
        sa.Column("inputs", TEXT, nullable=False),
        sa.Column("steps", TEXT, nullable=False),
        sa.Column("state", TEXT, nullable=False),
        sa.Column("started_at", TEXT, nullable=False),
        sa.Column("finished_at", TEXT),
        sa.Column("exit_code", sa.Integer),
        sa.Column("reason", TEXT, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("run_by_time", "run", ["started_at", "run_id"])
    op.create_index("run_by_workflow", "run", ["workflow", "started_at", "run_id"])
    op.create_index("run_by_state", "run", ["state", "started_at", "run_id"])


def _create_event() -> None:
    op.create_table(
        "event",
        sa.Column("run_id", TEXT, sa.ForeignKey("run.run_id"), nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("time", TEXT, nullable=False),
        sa.Column("kind", TEXT, nullable=False),
        sa.Column("data", TEXT, nullable=False),
        sa.Column("digest", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("run_id", "seq"),
        sqlite_with_rowid=False,
    )


def _create_step() -> None:
    op.create_table(
        "step",
        sa.Column("run_id", TEXT, sa.ForeignKey("run.run_id"), nullable=False),
        sa.Column("step", TEXT, nullable=False),
        sa.Column("state", TEXT, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("step_key", TEXT, nullable=False),
        sa.Column("action", TEXT, nullable=False),
        sa.Column("started_at", TEXT),
        sa.Column("finished_at", TEXT),
        sa.Column("reason", TEXT, nullable=False),
        sa.Column("outputs", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("run_id", "step"),
        sqlite_with_rowid=False,
    )


def _create_lease() -> None:
    op.create_table(
        "lease",
        sa.Column("lease_id", TEXT, primary_key=True),
        sa.Column("run_id", TEXT, sa.ForeignKey("run.run_id"), nullable=False),
        sa.Column("workflow", TEXT, nullable=False),
        sa.Column("agent", TEXT, nullable=False),
        sa.Column("step", TEXT, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("step_key", TEXT, nullable=False),
        sa.Column("grant", TEXT, nullable=False),
        sa.Column("grant_kind", TEXT, nullable=False),
        sa.Column("resource", TEXT, nullable=False),
        sa.Column("scope", TEXT, nullable=False),
        sa.Column("state", TEXT, nullable=False),
        sa.Column("ttl", sa.Integer, nullable=False),
        sa.Column("requested_at", TEXT, nullable=False),
        sa.Column("issued_at", TEXT),
        sa.Column("expires_at", TEXT),
        sa.Column("closed_at", TEXT),
        sa.Column("vault_lease_id", TEXT, nullable=False),
        sa.Column("accessor", TEXT, nullable=False),
        sa.Column("subject", TEXT, nullable=False),
        sa.Column("reason", TEXT, nullable=False),
    )
    op.create_index("lease_by_time", "lease", ["requested_at", "lease_id"])
    op.create_index("lease_by_run", "lease", ["run_id", "requested_at", "lease_id"])
    op.create_index("lease_by_workflow", "lease", ["workflow", "requested_at", "lease_id"])
    op.create_index("lease_by_step", "lease", ["step", "requested_at", "lease_id"])
    op.create_index("lease_by_agent", "lease", ["agent", "requested_at", "lease_id"])
    op.create_index("lease_by_state", "lease", ["state", "requested_at", "lease_id"])
    op.create_index("lease_by_resource", "lease", ["resource", "requested_at", "lease_id"])
    op.create_index("lease_by_grant_kind", "lease", ["grant_kind", "requested_at", "lease_id"])


GUARDS = {
    "sqlite": (
        """
        CREATE TRIGGER event_refuses_update BEFORE UPDATE ON event
        BEGIN SELECT RAISE(ABORT, 'events are append-only'); END
        """,
        """
        CREATE TRIGGER event_refuses_delete BEFORE DELETE ON event
        BEGIN SELECT RAISE(ABORT, 'events are append-only'); END
        """,
        # INSERT OR REPLACE removes the old row without firing the trigger on DELETE.
        """
        CREATE TRIGGER event_refuses_replace BEFORE INSERT ON event
        WHEN EXISTS (SELECT 1 FROM event WHERE run_id = NEW.run_id AND seq = NEW.seq)
        BEGIN SELECT RAISE(ABORT, 'events are append-only'); END
        """,
    ),
    "postgresql": (
        """
        CREATE FUNCTION event_is_append_only() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'events are append-only'; END $$
        """,
        """
        CREATE TRIGGER event_refuses_change BEFORE UPDATE OR DELETE ON event
        FOR EACH ROW EXECUTE FUNCTION event_is_append_only()
        """,
        """
        CREATE TRIGGER event_refuses_truncate BEFORE TRUNCATE ON event
        FOR EACH STATEMENT EXECUTE FUNCTION event_is_append_only()
        """,
    ),
}
"""What keeps the events append-only, by dialect."""
