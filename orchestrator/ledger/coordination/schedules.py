"""What the scheduler remembers of each workflow, for several processes that must agree.

A row is read, and written back only if nobody has written it meanwhile (compare and set on
`version`). Synchronous and safe for threads; every method may raise LedgerError.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Protocol

from sqlalchemy import Connection, Engine, RowMapping, insert, or_, select, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from orchestrator.ledger.faults import ledger_error
from orchestrator.ledger.location import locate
from orchestrator.ledger.storage.connect import BEGIN, connect
from orchestrator.ledger.storage.migrate import ensure_schema
from orchestrator.ledger.storage.tables import schedule
from orchestrator.ledger.storage.times import text_to_time, time_to_text


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleState:
    """One workflow's row. Every scheduled time up to `handled` was started or skipped.

    `requested` is when somebody asked for a run outside the schedule, until it is started.
    `version` counts the writes; 0 says that there is no row yet.
    """

    workflow: str
    handled: datetime
    paused: bool = False
    requested: datetime | None = None
    version: int = 0


class ScheduleStates(Protocol):
    """What the scheduler asks of the store."""

    def get(self, workflow: str) -> ScheduleState | None:
        """The state of one workflow, or None if nothing was ever stored of it. Every call may raise LedgerError."""
        ...

    def put(self, state: ScheduleState) -> ScheduleState | None:
        """Store it if nobody else did since it was read, and return what is stored now; None if somebody did."""
        ...

    def all(self) -> Sequence[ScheduleState]:
        """Every state that is stored, by workflow."""
        ...

    def attention(self) -> Sequence[ScheduleState]:
        """Those that are paused, or of which somebody has asked for a run."""
        ...

    def probe(self) -> None:
        """Raise LedgerError if nothing could be written now."""
        ...


class ScheduleStore:
    """The table `schedule` of a ledger. Made by `open_schedules`."""

    def __init__(self, engine: Engine, label: str) -> None:
        self._engine = engine
        self._label = label

    def get(self, workflow: str) -> ScheduleState | None:
        """The workflow's row, or None."""
        with self._connection() as connection:
            row = connection.execute(select(schedule).where(schedule.c.workflow == workflow)).mappings().first()
            return None if row is None else _state(row)

    def all(self) -> Sequence[ScheduleState]:
        """Every row, by workflow."""
        with self._connection() as connection:
            rows = connection.execute(select(schedule).order_by(schedule.c.workflow)).mappings()
            return [_state(row) for row in rows]

    def attention(self) -> Sequence[ScheduleState]:
        """The rows that are paused, or of which somebody has asked for a run."""
        wanted = select(schedule).where(or_(schedule.c.paused != 0, schedule.c.requested.is_not(None)))
        with self._connection() as connection:
            return [_state(row) for row in connection.execute(wanted).mappings()]

    def put(self, state: ScheduleState) -> ScheduleState | None:
        """Write the state if the row still has its version, and return it as it is now; None: somebody was faster."""
        written = replace(state, version=state.version + 1)
        try:
            with self._connection(writing=True) as connection, connection.begin():
                if state.version == 0:
                    connection.execute(insert(schedule).values(_values(written)))
                    return written
                mine = (schedule.c.workflow == state.workflow) & (schedule.c.version == state.version)
                changed = connection.execute(update(schedule).where(mine).values(_values(written))).rowcount
                return written if changed == 1 else None
        except _Taken:
            return None

    def probe(self) -> None:
        """Raise LedgerError if the ledger cannot be written now. Changes nothing."""
        with self._connection(writing=True) as connection, connection.begin():
            connection.execute(update(schedule).where(schedule.c.workflow == "").values(version=0))

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    @contextmanager
    def _connection(self, *, writing: bool = False) -> Iterator[Connection]:
        options: dict[str, Any] = {BEGIN: "BEGIN IMMEDIATE"} if writing else {}
        try:
            with self._engine.connect().execution_options(**options) as connection:
                yield connection
        except IntegrityError as error:
            raise _Taken from error
        except SQLAlchemyError as error:
            raise ledger_error(error, self._label) from error


class _Taken(Exception):
    """Another process has inserted the row first."""


@contextmanager
def open_schedules(url: str) -> Iterator[ScheduleStore]:
    """The scheduler's table in the ledger at this URL, created where needed. Raises UsageError or LedgerError."""
    location = locate(url)
    engine = connect(location)
    try:
        try:
            ensure_schema(engine, location)
        except (SQLAlchemyError, engine.dialect.loaded_dbapi.Error, OSError) as error:
            raise ledger_error(error, location.label) from error
        yield ScheduleStore(engine, location.label)
    finally:
        engine.dispose()


def _state(row: RowMapping) -> ScheduleState:
    return ScheduleState(
        workflow=row["workflow"],
        handled=text_to_time(row["handled"]),
        paused=bool(row["paused"]),
        requested=text_to_time(row["requested"]) if row["requested"] else None,
        version=row["version"],
    )


def _values(state: ScheduleState) -> dict[str, object]:
    return {
        "workflow": state.workflow,
        "version": state.version,
        "handled": time_to_text(state.handled),
        "paused": int(state.paused),
        "requested": time_to_text(state.requested) if state.requested else None,
    }
