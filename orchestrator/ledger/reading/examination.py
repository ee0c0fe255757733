"""Whether the ledger says of its runs what their events say: the chains, and the tables that follow from them.

`run`, `step`, `lease` and `lease_origin` are what lists, filters and recovery read, and they are not append-only. Here
they are made anew from the events and compared with what is stored. Not compared is what follows from
no event: `run.fence`, the processes, the queue, the schedules, the texts of workflows, which are
looked at by their digest when they are used, and the log over all runs, which is verified by itself.

Runs are read in batches, each in one snapshot, so that one that goes on is seen as it was at one moment; of a batch the
rows of steps and leases are held, and the events only pass by.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, Table, and_, select

from orchestrator.errors import OrchestratorError
from orchestrator.ledger.events import Event, ValuesDropped
from orchestrator.ledger.findings import Difference, Examined
from orchestrator.ledger.storage.chain import Head, StoredEvent, first_break, genesis
from orchestrator.ledger.storage.codec import KEPT_BESIDE as BESIDE_EVENTS
from orchestrator.ledger.storage.codec import event_from_json, with_values
from orchestrator.ledger.storage.projections import Row, RunRows, project
from orchestrator.ledger.storage.tables import ORIGIN, event, lease, lease_origin, run, step

Snapshot = Callable[[], AbstractContextManager[Connection]]
"""A connection whose statements all see the same state."""

RUNS_AT_ONCE = 100
ROWS_AT_ONCE = 1000

KEPT_BESIDE = {
    "run": frozenset({"run_id", "fence", "seq", "head", "logged", "inline"}),
    "step": frozenset({"run_id"}),
    "lease": frozenset(),
}
"""Columns that follow from no event. `seq` and `head` are the chain's, and checked with it; `fence` is coordination."""


def examine(snapshot: Snapshot, run_id: str) -> Examined | None:
    """One run, or None if the ledger has nothing of it."""
    with snapshot() as connection:
        found = list(_examined(connection, lambda column: column == run_id))
        return _with_origins(connection, found[0]) if found else None


def examine_all(snapshot: Snapshot) -> Iterator[Examined]:
    """Every run, by id, also those of which only some rows are left; at the end, what belongs to none of them."""
    last = ""
    origins: set[tuple[str, ...]] = set()
    while True:
        with snapshot() as connection:
            batch = _following(connection, last)
            if not batch:
                break
            low, last = last, batch[-1]
            yield from _examined(connection, _between(low, last), origins)
    with snapshot() as connection:
        if differences := tuple(_origins(connection, origins)):
            yield Examined("", differences=differences)


def _following(connection: Connection, last: str) -> list[str]:
    """The next ids of runs that any table has, in order. Each table is asked by its index, for no more than these."""
    found: set[str] = set()
    for table in (run, event, step, lease):
        ids = select(table.c.run_id).where(table.c.run_id > last).distinct().order_by(table.c.run_id)
        found.update(str(row[0]) for row in connection.execute(ids.limit(RUNS_AT_ONCE)))
    return sorted(found)[:RUNS_AT_ONCE]


def _between(low: str, high: str) -> Callable[[Column[Any]], ColumnElement[bool]]:
    return lambda column: and_(column > low, column <= high)


def _examined(
    connection: Connection,
    these: Callable[[Column[Any]], ColumnElement[bool]],
    origins: set[tuple[str, ...]] | None = None,
) -> Iterator[Examined]:
    """The runs that `these` is true of. Of their leases the origins are added to `origins`."""
    runs = {str(row["run_id"]): row for row in _rows(connection, run, these)}
    steps = _by_run(_rows(connection, step, these), "step")
    leases = _by_run(_rows(connection, lease, these), "lease_id")
    left = runs.keys() | steps.keys() | leases.keys()
    query = select(event).where(these(event.c.run_id)).order_by(event.c.run_id, event.c.seq)
    with connection.execution_options(yield_per=ROWS_AT_ONCE).execute(query) as stored:
        events = (StoredEvent._make(row) for row in stored)
        for run_id, of_run in groupby(events, attrgetter("run_id")):
            left = left - {run_id}
            found, said = _replayed(run_id, of_run, runs.get(run_id))
            if said is not None:
                kept = RunRows(runs.get(run_id, {}), steps.get(run_id, {}), leases.get(run_id, {}))
                found = Examined(run_id, differences=tuple(_differences(run_id, kept, said)))
                if origins is not None:
                    origins.update(map(_origin, said.leases.values()))
            yield found
    for run_id in sorted(left):  # without a single event
        head = _head(runs.get(run_id), run_id)
        if head.seq or run_id in runs:
            yield Examined(run_id, first_broken_event=1)
        else:
            kept = RunRows({}, steps.get(run_id, {}), leases.get(run_id, {}))
            yield Examined(run_id, differences=tuple(_differences(run_id, kept, RunRows())))


def _replayed(run_id: str, events: Iterable[StoredEvent], row: Row | None) -> tuple[Examined, RunRows | None]:
    """What the events say, where their chain is whole and this version can read them."""
    replay = _Replay()
    broken = first_break(run_id, replay.passing(events), _head(row, run_id))
    if broken is not None:
        return Examined(run_id, first_broken_event=broken), None
    if gone := sorted(replay.missing - replay.dropped):
        removed = Difference("event", run_id, f"values were removed, and no event says so: {', '.join(gone)}")
        return Examined(run_id, differences=(removed,)), None
    if replay.error:
        unreadable = Difference("event", run_id, f"its events cannot be followed: {replay.error}")
        return Examined(run_id, differences=(unreadable,)), None
    return Examined(run_id), replay.rows


@dataclass(slots=True)
class _Replay:
    """Makes the rows from events that pass by. Whether these are genuine is known only afterwards."""

    rows: RunRows = field(default_factory=RunRows)
    error: str = ""
    missing: set[str] = field(default_factory=set)
    """Kinds of values that are not beside events any more."""
    dropped: set[str] = field(default_factory=set)
    """Those of which an event says that they were dropped."""

    def passing(self, events: Iterable[StoredEvent]) -> Iterator[StoredEvent]:
        """The same events."""
        some: list[StoredEvent] = []
        for each in events:
            yield each
            some.append(each)
            if len(some) == ROWS_AT_ONCE:
                self._follow(some)
                some.clear()
        self._follow(some)

    def _follow(self, events: Sequence[StoredEvent]) -> None:
        if self.error:
            return
        try:
            self.rows.merge(project(self.rows, [(each.time, self._read(each)) for each in events]))
        except OrchestratorError as error:
            self.error = error.message
        except (ValueError, TypeError, KeyError, AttributeError, AssertionError) as error:
            self.error = type(error).__name__  # of data that is no event of ours

    def _read(self, stored: StoredEvent) -> Event:
        data, gone = with_values(json.loads(stored.data), stored.kept)
        self.missing |= {BESIDE_EVENTS[stored.kind][name].value for name in gone}
        event = event_from_json(stored.kind, data)
        if isinstance(event, ValuesDropped):
            self.dropped |= set(event.values)
        return event


def _head(row: Row | None, run_id: str) -> Head:
    """A run whose row is gone has no head: its first event is then one too many."""
    if row is None or not isinstance(row["seq"], int):
        return genesis(run_id)
    return Head(row["seq"], str(row["head"]))


def _differences(run_id: str, kept: RunRows, said: RunRows) -> Iterator[Difference]:
    yield from _compared(run, {run_id: kept.run} if kept.run else {}, {run_id: said.run} if said.run else {})
    yield from _compared(step, kept.steps, said.steps)
    leases = {lease_id: {**row, "run_id": run_id} for lease_id, row in said.leases.items()}
    yield from _compared(lease, kept.leases, leases)


def _compared(table: Table, kept: Mapping[str, Row], said: Mapping[str, Row]) -> Iterator[Difference]:
    columns = [column.name for column in table.columns if column.name not in KEPT_BESIDE[table.name]]
    for key in sorted(kept.keys() | said.keys()):
        if key not in kept or key not in said:
            yield Difference(table.name, key, "missing" if key in said else "added")
            continue
        stored, expected = kept[key], said[key]
        # SQLite stores a value of any type in any column, hence the types.
        changed = [name for name in columns if (type(stored[name]), stored[name]) != _typed(expected[name])]
        if changed:
            yield Difference(table.name, key, "changed", tuple(changed))


def _typed(value: object) -> tuple[type, object]:
    return type(value), value


def _with_origins(connection: Connection, found: Examined) -> Examined:
    """With the combinations of its leases, by which filters find them."""
    query = select(*(lease.c[name] for name in ORIGIN)).where(lease.c.run_id == found.run_id).distinct()
    origins = {tuple(map(str, row)) for row in connection.execute(query)}
    missing = [
        Difference("lease_origin", " ".join(origin), "missing")
        for origin in sorted(origins)
        if connection.execute(_row_of(lease_origin, origin)).first() is None
    ]
    return Examined(found.run_id, found.first_broken_event, (*found.differences, *missing))


def _origins(connection: Connection, said: set[tuple[str, ...]]) -> Iterator[Difference]:
    """Leases may have been issued since: what is there more than `said` is asked for in the table of leases."""
    kept = {tuple(map(str, row)) for row in connection.execute(select(*(lease_origin.c[name] for name in ORIGIN)))}
    for origin in sorted(said - kept):
        yield Difference("lease_origin", " ".join(origin), "missing")
    for origin in sorted(kept - said):
        if connection.execute(_row_of(lease, origin)).first() is None:
            yield Difference("lease_origin", " ".join(origin), "added")


def _row_of(table: Table, origin: tuple[str, ...]) -> Any:
    same = [table.c[name] == value for name, value in zip(ORIGIN, origin, strict=True)]
    return select(table.c[ORIGIN[0]]).where(*same).limit(1)


def _origin(row: Row) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in ORIGIN)


def _rows(connection: Connection, table: Table, these: Callable[[Column[Any]], ColumnElement[bool]]) -> Iterator[Row]:
    for row in connection.execute(select(table).where(these(table.c.run_id))).mappings():
        yield dict(row)


def _by_run(rows: Iterable[Row], key: str) -> dict[str, dict[str, Row]]:
    found: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in rows:
        found[str(row["run_id"])][str(row[key])] = row
    return found
