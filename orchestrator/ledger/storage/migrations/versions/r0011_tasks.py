"""Tasks, the runs that are calls in them, and the agents that are cut off."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "r0011"
down_revision = "r0010"

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """No run is of a task yet."""
    op.add_column("run", sa.Column("task", TEXT))
    op.add_column("run", sa.Column("deadline", TEXT))
    op.add_column("run", sa.Column("idle", sa.Integer))
    op.create_table("gate", sa.Column("name", TEXT, primary_key=True), sqlite_with_rowid=False)
    op.create_table(
        "agent_block",
        sa.Column("agent", TEXT, primary_key=True),
        sa.Column("until", TEXT),
        sa.Column("by", TEXT, nullable=False),
        sa.Column("reason", TEXT, nullable=False),
        sa.Column("at", TEXT, nullable=False),
        sqlite_with_rowid=False,
    )
    for name, columns, condition in (
        ("run_by_time", [], "workflow <> '(sweep)' AND task IS NULL"),
        ("run_by_state", ["state"], "workflow <> '(sweep)' AND task IS NULL"),
        ("run_by_task", ["task"], "task IS NOT NULL"),
        ("run_of_task_by_time", [], "task IS NOT NULL"),
        ("task_by_agent", ["agent", "state"], "task = run_id"),
        ("task_by_state", ["state"], "task = run_id"),
    ):
        if name in ("run_by_time", "run_by_state"):
            op.drop_index(name, "run")
        where = sa.text(condition)
        op.create_index(name, "run", [*columns, "started_at", "run_id"], sqlite_where=where, postgresql_where=where)
