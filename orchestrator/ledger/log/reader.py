"""The log of a ledger, for reading: entries, roots and proofs, and the checkpoints that were signed.

Synchronous and safe for threads; every method may raise LedgerError.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Engine, func, select
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.errors import LedgerError
from orchestrator.ledger.events import LogRestarted
from orchestrator.ledger.faults import ledger_error
from orchestrator.ledger.log.leaf import Leaf
from orchestrator.ledger.log.tree import TILE, inclusion, leaf_hash, root
from orchestrator.ledger.storage.chain import Head, StoredEvent
from orchestrator.ledger.storage.connect import BEGIN
from orchestrator.ledger.storage.log_tables import log, log_checkpoint, log_leaf, log_node, log_published
from orchestrator.ledger.storage.tables import RESTART_WORKFLOW, event, run
from orchestrator.ledger.storage.times import text_to_time

AT_ONCE = 1000
"""Rows that are read at once."""

WIDE = 1 << TILE
"""Subtrees in one tile."""


class LogBroken(LedgerError):
    """The tables of the log are not what was written."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem, hint="`orchestrator history verify` tells what is wrong; restore it from a backup.")


@dataclass(frozen=True, slots=True)
class StoredCheckpoint:
    """A signed checkpoint: the size of the tree, the signed note, when that was, and another authority's time stamp."""

    size: int
    note: str
    at: datetime
    stamp: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry, and what the ledger has of its run: whether it is there, and the digest of the event that it names."""

    leaf: Leaf
    digest: str | None
    has_run: bool


@dataclass(frozen=True, slots=True)
class Unentered:
    """A run that has ended and is not in the log as it is now; `claimed`: its row says that it is."""

    run_id: str
    claimed: bool


@dataclass(frozen=True, slots=True)
class Published:
    """What a destination has: the newest size, and since when."""

    size: int
    at: datetime


@dataclass(frozen=True, slots=True)
class Restart:
    """The log went on under another name: see `LogRestarted`. `entry` is where that stands in the log, if it does."""

    log: str
    before: str
    size: int
    at: datetime
    reason: str
    by: str
    entry: int | None


class LogReader:
    """The log of one ledger."""

    def __init__(self, engine: Engine, label: str) -> None:
        self._engine = engine
        self._label = label

    def known_origin(self) -> str | None:
        """The same, None where nobody has asked."""
        with self._connection() as connection:
            found = connection.execute(select(log.c.origin)).scalar()
            return None if found is None else str(found)

    def keys(self) -> Mapping[str, str]:
        """The public keys of the signer that are known, by version, as Base64."""
        with self._connection() as connection:
            found = connection.execute(select(log.c.public_keys)).scalar()
            return {str(name): str(key) for name, key in json.loads(found or "{}").items()}

    def size(self) -> int:
        """How many entries there are."""
        with self._connection() as connection:
            return size_of(connection)

    def root(self, size: int) -> bytes:
        """The root of the tree of the first so many entries. Raises LedgerError where there are not so many."""
        with self._connection() as connection:
            return root(Stored(connection), size)

    def leaf(self, run_id: str, *, before: int) -> tuple[int, Leaf] | None:
        """The last entry of a run among the first so many, with its position."""
        query = select(log_leaf).where(log_leaf.c.run_id == run_id, log_leaf.c.position < before)
        with self._connection() as connection:
            row = connection.execute(query.order_by(log_leaf.c.position.desc()).limit(1)).first()
            return None if row is None else (row.position, _leaf(row))

    def stored_events(self, run_id: str, *, last: int) -> Sequence[StoredEvent]:
        """The history that an entry is of, up to its last event, as the chain has it."""
        query = select(event).where(event.c.run_id == run_id, event.c.seq <= last).order_by(event.c.seq)
        with self._connection() as connection:
            return [StoredEvent._make(row) for row in connection.execute(query).all()]

    def inclusion(self, position: int, size: int) -> Sequence[bytes]:
        """The path that proves an entry to be in the tree of so many."""
        with self._connection() as connection:
            return inclusion(Stored(connection), position, size)

    def entries(self) -> Iterator[Entry]:
        """All entries in order, in batches; more may be made meanwhile. Raises LogBroken where one is missing."""
        joined = log_leaf.outerjoin(event, (event.c.run_id == log_leaf.c.run_id) & (event.c.seq == log_leaf.c.seq))
        query = select(log_leaf, event.c.digest).select_from(joined.outerjoin(run, run.c.run_id == log_leaf.c.run_id))
        query = query.add_columns(run.c.run_id.label("run")).order_by(log_leaf.c.position).limit(AT_ONCE)
        at = 0
        while True:
            with self._connection() as connection:
                rows = connection.execute(query.where(log_leaf.c.position >= at)).all()
            if not rows:
                return
            for row in rows:
                if row.position != at:
                    raise LogBroken(f"entry {at} of the log is missing")
                yield Entry(_leaf(row), None if row.digest is None else str(row.digest), row.run is not None)
                at += 1

    def not_entered(self) -> Iterator[Unentered]:
        """The histories that have ended and of which the last entry does not say how they are now."""
        last = select(log_leaf.c.seq).where(log_leaf.c.run_id == run.c.run_id, log_leaf.c.seq == run.c.seq)
        query = select(run.c.run_id, (run.c.logged >= run.c.seq).label("claimed"))
        query = query.where(run.c.finished_at.is_not(None), ~last.exists()).order_by(run.c.run_id)
        with self._connection() as connection:
            for row in connection.execution_options(yield_per=AT_ONCE).execute(query):
                yield Unentered(str(row.run_id), bool(row.claimed))

    def nodes(self) -> Iterator[tuple[int, int, bytes]]:
        """The stored hashes of complete subtrees: level, position and hash of each."""
        with self._connection() as connection:
            query = select(log_node).order_by(log_node.c.level, log_node.c.position)
            with connection.execution_options(yield_per=AT_ONCE).execute(query) as rows:
                for row in rows:
                    yield row.level, row.position, _hash(row.hash)

    def newest_checkpoint(self) -> StoredCheckpoint | None:
        """That of the largest size."""
        with self._connection() as connection:
            query = select(log_checkpoint).order_by(log_checkpoint.c.size.desc()).limit(1)
            row = connection.execute(query).first()
            return None if row is None else _checkpoint(row)

    def checkpoints(self) -> Iterator[StoredCheckpoint]:
        """All of them, by size, in batches."""
        last = -1
        while True:
            query = select(log_checkpoint).where(log_checkpoint.c.size > last).order_by(log_checkpoint.c.size)
            with self._connection() as connection:
                rows = connection.execute(query.limit(AT_ONCE)).all()
            if not rows:
                return
            for row in rows:
                yield _checkpoint(row)
            last = rows[-1].size

    def restarts(self) -> Sequence[Restart]:
        """When the log went on under another name, the oldest first."""
        query = select(event.c.data, event.c.time, func.max(log_leaf.c.position).label("entry"))
        joined = event.join(run, run.c.run_id == event.c.run_id).outerjoin(log_leaf, log_leaf.c.run_id == run.c.run_id)
        query = query.select_from(joined).where(run.c.workflow == RESTART_WORKFLOW, event.c.kind == LogRestarted.kind)
        query = query.group_by(event.c.run_id, event.c.seq, event.c.data, event.c.time).order_by(event.c.time)
        with self._connection() as connection:
            rows = connection.execute(query).all()
            return [Restart(**json.loads(row.data), at=text_to_time(row.time), entry=row.entry) for row in rows]

    def published(self) -> Mapping[str, Published]:
        """What each destination has."""
        with self._connection() as connection:
            rows = connection.execute(select(log_published)).all()
            return {row.destination: Published(row.size, text_to_time(row.at)) for row in rows}

    @contextmanager
    def _connection(self, *, writing: bool = False) -> Iterator[Connection]:
        try:
            with self._engine.connect() as connection:
                if writing:
                    connection = connection.execution_options(**{BEGIN: "BEGIN IMMEDIATE"})
                yield connection
        except SQLAlchemyError as error:
            raise ledger_error(error, self._label) from error
        except (ValueError, TypeError, AttributeError) as error:
            raise LogBroken("the log holds a row that was not written by this ledger") from error


class Stored:
    """The hashes that a ledger holds, seen over one connection; a tile is read whole, and once."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._tile = lru_cache(maxsize=8)(self._read)

    def read(self, level: int, start: int, stop: int) -> Sequence[bytes]:
        """As `Hashes` has it. Raises LogBroken where one is missing."""
        tile = start // WIDE
        found = self._tile(level, tile)[start - tile * WIDE : stop - tile * WIDE]
        if len(found) != stop - start:
            raise LogBroken(f"the log has no entries from {start << level} to {(stop << level) - 1}")
        return found

    def _read(self, level: int, tile: int) -> Sequence[bytes]:
        first = tile * WIDE
        table = log_node if level else log_leaf
        query = select(table).where(table.c.position >= first, table.c.position < first + WIDE)
        if level:
            query = query.where(log_node.c.level == level)
        rows = self._connection.execute(query.order_by(table.c.position)).all()
        if [row.position for row in rows] != list(range(first, first + len(rows))):
            raise LogBroken(f"the log has gaps after entry {first << level}")
        return [_hash(row.hash) if level else leaf_hash(_leaf(row).data()) for row in rows]


def size_of(connection: Connection) -> int:
    """How many entries there are."""
    last: Any = connection.execute(select(func.max(log_leaf.c.position))).scalar()
    return 0 if last is None else int(last) + 1


def _leaf(row: Any) -> Leaf:
    return Leaf(str(row.run_id), Head(int(row.seq), str(row.head)))


def _hash(text: str) -> bytes:
    found = bytes.fromhex(text)
    if len(found) != 32:
        raise LogBroken("the log holds a hash that is none")
    return found


def _checkpoint(row: Any) -> StoredCheckpoint:
    return StoredCheckpoint(int(row.size), str(row.note), text_to_time(row.at), str(row.stamp))
