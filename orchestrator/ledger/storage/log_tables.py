"""The tables of the log over all runs; see `orchestrator.ledger.log`."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Integer, PrimaryKeyConstraint, Table

from orchestrator.ledger.storage.tables import TEXT, metadata

log = Table(
    "log",
    metadata,
    Column("origin", TEXT, primary_key=True),
    Column("public_keys", TEXT, nullable=False),
    sqlite_with_rowid=False,
)
"""The one row of the log over all runs: its name in the world, and the public keys that are known of its signer."""

log_leaf = Table(
    "log_leaf",
    metadata,
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    Column("run_id", TEXT, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("head", TEXT, nullable=False),
    sqlite_with_rowid=False,
)
"""The entries of the log, by their position from 0: where the chain of a run ended when it was entered."""

log_node = Table(
    "log_node",
    metadata,
    Column("level", Integer, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("hash", TEXT, nullable=False),
    PrimaryKeyConstraint("level", "position"),
    sqlite_with_rowid=False,
)
"""Hashes of complete subtrees, of every eighth level: they follow from the leaves, and save reading them all."""

log_checkpoint = Table(
    "log_checkpoint",
    metadata,
    Column("size", BigInteger, primary_key=True, autoincrement=False),
    Column("note", TEXT, nullable=False),
    Column("at", TEXT, nullable=False),
    Column("stamp", TEXT, nullable=False),
    sqlite_with_rowid=False,
)
"""The signed checkpoints, one for a size. `stamp` is the time stamp of another authority, if there is one."""

log_published = Table(
    "log_published",
    metadata,
    Column("destination", TEXT, primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("at", TEXT, nullable=False),
    sqlite_with_rowid=False,
)
"""The newest checkpoint that each destination has."""
