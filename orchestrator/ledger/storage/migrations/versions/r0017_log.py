"""The log over all runs: a Merkle tree of where their chains ended, and its signed checkpoints."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "r0017"
down_revision = "r0016"

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
IS_UNLOGGED = sa.text("finished_at IS NOT NULL AND logged < seq")


def upgrade() -> None:
    """Nothing is in the log yet: the runs that have ended enter it with the next checkpoint."""
    op.add_column("run", sa.Column("logged", sa.BigInteger, nullable=False, server_default="0"))
    op.create_table(
        "log",
        sa.Column("origin", TEXT, primary_key=True),
        sa.Column("public_keys", TEXT, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "log_leaf",
        sa.Column("position", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("run_id", TEXT, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("head", TEXT, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "log_node",
        sa.Column("level", sa.Integer, nullable=False),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("hash", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("level", "position"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "log_checkpoint",
        sa.Column("size", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("note", TEXT, nullable=False),
        sa.Column("at", TEXT, nullable=False),
        sa.Column("stamp", TEXT, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "log_published",
        sa.Column("destination", TEXT, primary_key=True),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("at", TEXT, nullable=False),
        sqlite_with_rowid=False,
    )
    where = IS_UNLOGGED
    op.create_index("run_unlogged", "run", ["finished_at", "run_id"], sqlite_where=where, postgresql_where=where)
    op.create_index("log_leaf_by_run", "log_leaf", ["run_id", "position"])
