"""Values that may be dropped lie beside the events, which hold their digests."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "r0018"
down_revision = "r0017"

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
HAS_VALUES = sa.text("finished_at IS NOT NULL AND dropped < 3 AND inline = 0 AND workflow <> '(sweep)'")

GUARDS = {
    "sqlite": (
        "DROP TRIGGER event_refuses_update",
        """
        CREATE TRIGGER event_refuses_update BEFORE UPDATE OF run_id, seq, time, kind, data, digest ON event
        BEGIN SELECT RAISE(ABORT, 'events are append-only'); END
        """,
        """
        CREATE TRIGGER event_refuses_new_values BEFORE UPDATE OF kept ON event WHEN NEW.kept IS NOT NULL
        BEGIN SELECT RAISE(ABORT, 'events are append-only'); END
        """,
    ),
    "postgresql": (
        """
        CREATE OR REPLACE FUNCTION event_is_append_only() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN
            IF TG_OP = 'UPDATE' AND NEW.kept IS NULL
                AND (NEW.run_id, NEW.seq, NEW.time, NEW.kind, NEW.data, NEW.digest)
                    IS NOT DISTINCT FROM (OLD.run_id, OLD.seq, OLD.time, OLD.kind, OLD.data, OLD.digest) THEN
                RETURN NEW;
            END IF;
            RAISE EXCEPTION 'events are append-only';
        END $$
        """,
    ),
}
"""An event may lose its values, and nothing else of it changes."""


def upgrade() -> None:
    """The values of the runs that are there are in their events, and stay there."""
    op.add_column("event", sa.Column("kept", TEXT))
    op.add_column("run", sa.Column("dropped", sa.Integer, nullable=False, server_default="0"))
    op.add_column("run", sa.Column("inline", sa.Integer, nullable=False, server_default="0"))
    op.execute("UPDATE run SET inline = 1")
    where = HAS_VALUES
    op.create_index("run_with_values", "run", ["finished_at", "run_id"], sqlite_where=where, postgresql_where=where)
    for statement in GUARDS[op.get_bind().dialect.name]:
        op.execute(statement)
