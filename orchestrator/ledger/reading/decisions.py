"""The recorded decisions of many runs, batch by batch: a long history is read while somebody works through it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from sqlalchemy import Connection, Row, Select, TextClause, select, tuple_

from orchestrator.ledger.events import Decided
from orchestrator.ledger.findings import DecisionFilter, DecisionRecord
from orchestrator.ledger.reading.records import event_record
from orchestrator.ledger.storage.chain import StoredEvent
from orchestrator.ledger.storage.codec import event_from_json
from orchestrator.ledger.storage.tables import BY_ITSELF, OF_TASK, event, run
from orchestrator.ledger.storage.times import time_to_text

RUNS_AT_ONCE = 200


def decisions(
    reading: Callable[[], AbstractContextManager[Connection]], query: DecisionFilter
) -> Iterator[DecisionRecord]:
    """In the order in which their runs began, and of one run in that of its chain. Raises LedgerError."""
    after: tuple[str, str] | None = None
    while True:
        with reading() as connection:
            runs = _runs(connection, query, after)
            found = _recorded(connection, {row.run_id: row.workflow for row in runs})
        yield from found
        if len(runs) < RUNS_AT_ONCE:
            return
        after = (runs[-1].started_at, runs[-1].run_id)


def _recorded(connection: Connection, workflows: Mapping[str, str]) -> list[DecisionRecord]:
    """Those of these runs (ids with their workflows), in the order of the runs."""
    found: dict[str, list[DecisionRecord]] = {run_id: [] for run_id in workflows}
    for row in connection.execute(_events(list(workflows))) if workflows else ():
        said = event_record(StoredEvent._make(row))
        decided = event_from_json(Decided.kind, said.data)
        assert isinstance(decided, Decided)
        found[said.run_id].append(DecisionRecord(said.run_id, workflows[said.run_id], said.seq, said.time, decided))
    return [record for of_run in found.values() for record in of_run]


def _runs(connection: Connection, query: DecisionFilter, after: tuple[str, str] | None) -> Sequence[Row[Any]]:
    """The next runs in the order of their beginning, tasks and calls among them."""
    parts = (connection.execute(_of_kind(kind, query, after)).all() for kind in (BY_ITSELF, OF_TASK))
    return sorted((row for part in parts for row in part), key=_place)[:RUNS_AT_ONCE]


def _place(row: Row[Any]) -> tuple[str, str]:
    return row.started_at, row.run_id


def _of_kind(kind: TextClause, query: DecisionFilter, after: tuple[str, str] | None) -> Select[tuple[str, str, str]]:
    """The next runs of a kind in the order of their beginning, which an index of that kind gives."""
    found = select(run.c.run_id, run.c.workflow, run.c.started_at).where(kind)
    if query.run is not None:
        found = found.where(run.c.run_id == query.run)
    if query.workflow is not None:
        found = found.where(run.c.workflow == query.workflow)
    if query.since is not None:
        found = found.where(run.c.started_at >= time_to_text(query.since))
    if query.until is not None:
        found = found.where(run.c.started_at < time_to_text(query.until))
    if after is not None:
        found = found.where(tuple_(run.c.started_at, run.c.run_id) > after)
    return found.order_by(run.c.started_at, run.c.run_id).limit(RUNS_AT_ONCE)


def _events(runs: list[str]) -> Select[tuple[object, ...]]:
    return (
        select(event)
        .where(event.c.run_id.in_(runs), event.c.kind == Decided.kind)
        .order_by(event.c.run_id, event.c.seq)
    )
