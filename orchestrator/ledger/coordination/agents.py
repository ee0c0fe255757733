"""The agents that are cut off, for all processes. What a cut-off one tries is refused in the transaction of the ledger.

Synchronous and safe for threads; every method may raise LedgerError.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, delete, insert, or_, select
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.ledger.faults import ledger_error
from orchestrator.ledger.storage.connect import BEGIN
from orchestrator.ledger.storage.tables import agent_block
from orchestrator.ledger.storage.times import text_to_time, time_to_text


@dataclass(frozen=True, slots=True)
class Block:
    """An agent is cut off. Times are UTC; `until` None: until it is restored."""

    agent: str
    until: datetime | None
    by: str
    reason: str
    at: datetime


class AgentStore:
    """Who is cut off."""

    def __init__(self, engine: Engine, label: str) -> None:
        self._engine = engine
        self._label = label

    def block(self, agent: str, *, until: datetime | None, by: str, reason: str, now: datetime) -> None:
        """Cut an agent off from now on; what was said of it before is replaced."""
        values = {
            "agent": agent,
            "until": None if until is None else time_to_text(until),
            "by": by,
            "reason": reason,
            "at": time_to_text(now),
        }
        with self._connection({BEGIN: "BEGIN IMMEDIATE"}) as connection, connection.begin():
            connection.execute(delete(agent_block).where(agent_block.c.agent == agent))
            connection.execute(insert(agent_block).values(values))

    def restore(self, agent: str) -> bool:
        """Let an agent in again; False where it was not cut off."""
        with self._connection({BEGIN: "BEGIN IMMEDIATE"}) as connection, connection.begin():
            return connection.execute(delete(agent_block).where(agent_block.c.agent == agent)).rowcount == 1

    def blocks(self, *, now: datetime) -> Sequence[Block]:
        """Who is cut off at this time, by name."""
        still = or_(agent_block.c.until.is_(None), agent_block.c.until > time_to_text(now))
        with self._connection({}) as connection:
            return [
                Block(
                    str(row.agent),
                    None if row.until is None else text_to_time(row.until),
                    str(row.by),
                    str(row.reason),
                    text_to_time(row.at),
                )
                for row in connection.execute(select(agent_block).where(still).order_by(agent_block.c.agent))
            ]

    @contextmanager
    def _connection(self, options: dict[str, Any]) -> Iterator[Connection]:
        try:
            with self._engine.connect().execution_options(**options) as connection:
                yield connection
        except SQLAlchemyError as error:
            raise ledger_error(error, self._label) from error
