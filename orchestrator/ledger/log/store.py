"""The log of a ledger: what has ended is entered, and checkpoints are kept.

Entries are made by one process at a time, in transactions of their own, and never changed. Which histories are not
entered yet is a column of `run`, so that a run's own transactions wait for nobody. Synchronous and safe for threads;
every method may raise LedgerError.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from sqlalchemy import Connection, bindparam, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from orchestrator.ledger.ids import new_log_origin
from orchestrator.ledger.log.reader import WIDE, LogReader, Published, Stored, StoredCheckpoint, size_of
from orchestrator.ledger.log.tree import TILE, folded
from orchestrator.ledger.storage.connect import ONLY_ONE
from orchestrator.ledger.storage.log_tables import log, log_checkpoint, log_leaf, log_node, log_published
from orchestrator.ledger.storage.tables import IS_UNLOGGED, run
from orchestrator.ledger.storage.times import time_to_text

AT_ONCE = 1000
"""Histories that one transaction enters."""


class LogStore(LogReader):
    """The log of one ledger, for those who write it."""

    def is_behind(self) -> bool:
        """Whether a history that has ended is not entered, or what is entered has no checkpoint."""
        with self._connection() as connection:
            ended = connection.execute(select(run.c.run_id).where(IS_UNLOGGED).limit(1)).first()
            return ended is not None or size_of(connection) > _newest_size(connection)

    def enter(self) -> int:
        """Enter some of the histories that have ended, in the order in which they did; how many these were."""
        with self._connection(writing=True) as connection, connection.begin():
            _lock(connection)
            ended = select(run.c.run_id, run.c.seq, run.c.head).where(IS_UNLOGGED)
            ended = ended.order_by(run.c.finished_at, run.c.run_id).limit(AT_ONCE)
            # Whoever adds to such a run just now enters it with the next turn, and nobody waits in a circle.
            rows = connection.execute(ended.with_for_update(key_share=True, skip_locked=True)).all()
            if not rows:
                return 0
            size = size_of(connection)
            leaves = [
                {"position": size + number, "run_id": row.run_id, "seq": row.seq, "head": row.head}
                for number, row in enumerate(rows)
            ]
            connection.execute(insert(log_leaf), leaves)
            entered = update(run).where(run.c.run_id == bindparam("of_run")).values(logged=bindparam("of_seq"))
            connection.execute(entered, [{"of_run": row.run_id, "of_seq": row.seq} for row in rows])
            _complete(connection, size, size + len(rows))
            return len(rows)

    def origin(self) -> str:
        """The name of this log in the world; it is given to it the first time that somebody asks."""
        if (known := self.known_origin()) is not None:
            return known
        with self._connection(writing=True) as connection, connection.begin():
            return _lock(connection)

    def rename(self, origin: str) -> None:
        """Give the log another name in the world, under which it goes on."""
        with self._connection(writing=True) as connection, connection.begin():
            _lock(connection)
            connection.execute(update(log).values(origin=origin))

    def know(self, keys: Mapping[str, str]) -> None:
        """Remember them."""
        with self._connection(writing=True) as connection, connection.begin():
            connection.execute(update(log).values(public_keys=json.dumps(dict(keys), sort_keys=True)))

    def keep(self, checkpoint: StoredCheckpoint) -> None:
        """Keep a signed checkpoint; where there is one of its size that stays, unless this has a time stamp."""
        values = {
            "size": checkpoint.size,
            "note": checkpoint.note,
            "at": time_to_text(checkpoint.at),
            "stamp": checkpoint.stamp,
        }
        inserting = sqlite.insert if self._engine.dialect.name == "sqlite" else postgresql.insert
        statement = inserting(log_checkpoint).values(values)
        kept = (
            statement.on_conflict_do_update(index_elements=["size"], set_=values)
            if checkpoint.stamp
            else statement.on_conflict_do_nothing()
        )
        with self._connection(writing=True) as connection, connection.begin():
            connection.execute(kept)

    def note_published(self, destination: str, published: Published) -> None:
        """A destination has this checkpoint now."""
        values = {"size": published.size, "at": time_to_text(published.at)}
        inserting = sqlite.insert if self._engine.dialect.name == "sqlite" else postgresql.insert
        statement = inserting(log_published).values(destination=destination, **values)
        with self._connection(writing=True) as connection, connection.begin():
            connection.execute(statement.on_conflict_do_update(index_elements=["destination"], set_=values))


def _complete(connection: Connection, before: int, size: int) -> None:
    """Store the hashes of the subtrees that are complete now and were not `before`."""
    level = TILE
    while (size >> level) > (before >> level):
        stored = Stored(connection)
        for position in range(before >> level, size >> level):
            tile = stored.read(level - TILE, position * WIDE, (position + 1) * WIDE)
            connection.execute(insert(log_node).values(level=level, position=position, hash=folded(tile).hex()))
        level += TILE


def _lock(connection: Connection) -> str:
    """Keep other processes from entering anything until the end of the transaction; the origin of the log."""
    row = connection.execute(select(log.c.origin).with_for_update()).first()
    if row is not None:
        return str(row.origin)
    if connection.dialect.name == "postgresql":  # two processes must not both give it a name
        connection.execute(ONLY_ONE)
        if (row := connection.execute(select(log.c.origin).with_for_update()).first()) is not None:
            return str(row.origin)
    origin = new_log_origin()
    connection.execute(insert(log).values(origin=origin, public_keys="{}"))
    return origin


def _newest_size(connection: Connection) -> int:
    return int(connection.execute(select(func.max(log_checkpoint.c.size))).scalar() or 0)
