"""The events of many runs in one order, in batches that stay small however long the history and its runs are.

Runs come in the order in which they began, of each its events in that of its chain. A batch is read by indexes, in a
snapshot of its own, and of a run no further than its chain reached when its batch was read: what an event says never
changes afterwards, whether its values are dropped or not, so that nobody has to hold a snapshot while somebody else
works through all this.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, RowMapping, Select, select, tuple_

from orchestrator.jsontypes import JsonObject
from orchestrator.ledger.reading.newest_first import Condition, after_prefix, unindexed
from orchestrator.ledger.states import RunState
from orchestrator.ledger.storage.codec import with_values
from orchestrator.ledger.storage.tables import BY_ITSELF, OF_TASK, SWEEP_WORKFLOW, event, lease, run
from orchestrator.ledger.storage.times import text_to_time, time_to_text

RUNS_AT_ONCE = 200
EVENTS_AT_ONCE = 1000

Snapshot = Callable[[], AbstractContextManager[Connection]]
"""A connection whose statements all see the same state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryFilter:
    """All given parts must match. Times bound the beginning of the runs: `since` is included, `until` is not."""

    run: str | None = None
    workflow: str | None = None
    agent: str | None = None
    resource: str | None = None
    """Only runs with a lease of which the Vault path begins so."""
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class RunHead:
    """A run, a task or a sweep as its batch found it. `events` is how many its chain says there are."""

    run_id: str
    workflow: str
    agent: str
    task: str | None
    started_at: datetime
    finished_at: datetime | None
    events: int


@dataclass(frozen=True, slots=True)
class ChainEvent:
    """An event as its chain has it: `digest` can be computed again from what is here, and from nothing else."""

    run_id: str
    seq: int
    time: datetime
    kind: str
    data: JsonObject
    """Of values that lie beside the event it has the digests."""
    digest: str
    kept: JsonObject
    """These values with their salts, by field."""
    dropped: frozenset[str]
    """The fields whose values were dropped after their retention."""


@dataclass(frozen=True, slots=True)
class Chapter:
    """Some events of a run, in order. With `last` there are no more of them, whatever its chain says."""

    run: RunHead
    events: Sequence[ChainEvent]
    last: bool


def history(snapshot: Snapshot, query: HistoryFilter) -> Iterator[Chapter]:
    """Every run that the filter asks for, in the order of their beginning. Raises LedgerError."""
    after: tuple[str, str] | None = None
    while True:
        with snapshot() as connection:
            rows = _runs(connection, query, after)
            heads = [_head(row) for row in rows]
        for group in _groups(heads):
            yield from _read(snapshot, group)
        if len(rows) < RUNS_AT_ONCE:
            return
        after = _place(rows[-1])


def _runs(connection: Connection, query: HistoryFilter, after: tuple[str, str] | None) -> Sequence[Row[Any]]:
    parts = (connection.execute(statement).all() for statement in _statements(query, after))
    return sorted((row for part in parts for row in part), key=_place)[:RUNS_AT_ONCE]


def _statements(query: HistoryFilter, after: tuple[str, str] | None) -> Iterator[Select[Any]]:
    """The next runs of each kind. An index of that kind gives the order; the other conditions are checked on each."""
    if query.run is not None:
        yield _next(query, after, [run.c.run_id == query.run])
        return
    workflow = [] if query.workflow is None else [unindexed(run.c.workflow) == query.workflow]
    agent = [] if query.agent is None else [unindexed(run.c.agent) == query.agent]
    yield _next(query, after, [BY_ITSELF, *workflow, *([run.c.agent == query.agent] if agent else [])])
    yield _next(query, after, [OF_TASK, *workflow, *agent])
    if query.workflow in (None, SWEEP_WORKFLOW):
        for state in RunState:
            yield _next(query, after, [run.c.workflow == SWEEP_WORKFLOW, run.c.state == state.value, *agent])


def _next(query: HistoryFilter, after: tuple[str, str] | None, conditions: Sequence[Condition]) -> Select[Any]:
    columns = ("run_id", "workflow", "agent", "task", "started_at", "finished_at", "seq")
    found = select(*(run.c[name] for name in columns)).where(*conditions)
    if query.resource:
        found = found.where(_has_lease_of(query.resource))
    if query.since is not None:
        found = found.where(run.c.started_at >= time_to_text(query.since))
    if query.until is not None:
        found = found.where(run.c.started_at < time_to_text(query.until))
    if after is not None:
        found = found.where(tuple_(run.c.started_at, run.c.run_id) > after)
    return found.order_by(run.c.started_at, run.c.run_id).limit(RUNS_AT_ONCE)


def _has_lease_of(prefix: str) -> ColumnElement[bool]:
    path, end = unindexed(lease.c.resource), after_prefix(prefix)
    within = [path >= prefix, *([] if end is None else [path < end])]
    return select(lease.c.lease_id).where(lease.c.run_id == run.c.run_id, *within).exists()


def _place(row: Row[Any]) -> tuple[str, str]:
    return row.started_at, row.run_id


def _head(row: Row[Any]) -> RunHead:
    finished = None if row.finished_at is None else text_to_time(row.finished_at)
    return RunHead(row.run_id, row.workflow, row.agent, row.task, text_to_time(row.started_at), finished, int(row.seq))


def _event(row: RowMapping) -> ChainEvent:
    """Raises ValueError for one that is not what was recorded."""
    data, kept = json.loads(row["data"]), row["kept"]
    _, dropped = with_values(data, kept)
    return ChainEvent(
        run_id=row["run_id"],
        seq=row["seq"],
        time=text_to_time(row["time"]),
        kind=row["kind"],
        data=data,
        digest=row["digest"],
        kept={} if kept is None else json.loads(kept),
        dropped=dropped,
    )


def _groups(heads: Sequence[RunHead]) -> Iterator[list[RunHead]]:
    """Neighbours that have not too many events together; what has too many by itself is alone."""
    group: list[RunHead] = []
    together = 0
    for head in heads:
        if group and together + head.events > EVENTS_AT_ONCE:
            yield group
            group, together = [], 0
        group.append(head)
        together += head.events
    if group:
        yield group


def _read(snapshot: Snapshot, group: Sequence[RunHead]) -> Iterator[Chapter]:
    if len(group) == 1:
        yield from _pages(snapshot, group[0])
        return
    of_run: dict[str, list[ChainEvent]] = {head.run_id: [] for head in group}
    most = max(head.events for head in group)
    query = select(event).where(event.c.run_id.in_(list(of_run)), event.c.seq <= most)
    with snapshot() as connection:
        for row in connection.execute(query.order_by(event.c.run_id, event.c.seq)).mappings():
            of_run[row["run_id"]].append(_event(row))
    for head in group:
        yield Chapter(head, [each for each in of_run[head.run_id] if each.seq <= head.events], last=True)


def _pages(snapshot: Snapshot, head: RunHead) -> Iterator[Chapter]:
    """A run by itself, so many events at once."""
    query = select(event).where(event.c.run_id == head.run_id, event.c.seq <= head.events)
    query = query.order_by(event.c.seq).limit(EVENTS_AT_ONCE)
    page: list[ChainEvent] = []
    while True:
        following = query.where(event.c.seq > page[-1].seq) if page else query
        with snapshot() as connection:
            page = [_event(row) for row in connection.execute(following).mappings()]
        last = len(page) < EVENTS_AT_ONCE
        yield Chapter(head, page, last)
        if last:
            return
