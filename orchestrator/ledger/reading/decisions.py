"""The recorded decisions of many runs, batch by batch: a long history is read while somebody works through it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager

from sqlalchemy import Connection, Select, select, tuple_

from orchestrator.ledger.events import Decided
from orchestrator.ledger.storage.codec import event_from_json
from orchestrator.ledger.storage.tables import NO_SWEEP, event, run
from orchestrator.ledger.storage.times import text_to_time, time_to_text
from orchestrator.ledger.types import DecisionFilter, DecisionRecord

RUNS_AT_ONCE = 200


def decisions(
    reading: Callable[[], AbstractContextManager[Connection]], query: DecisionFilter
) -> Iterator[DecisionRecord]:
    """In the order in which their runs began, and of one run in that of its chain. Raises LedgerError."""
    after: tuple[str, str] | None = None
    while True:
        with reading() as connection:
            runs = connection.execute(_runs(query, after)).all()
            found = _recorded(connection, {row.run_id: row.workflow for row in runs})
        yield from found
        if len(runs) < RUNS_AT_ONCE:
            return
        after = (runs[-1].started_at, runs[-1].run_id)


def _recorded(connection: Connection, workflows: Mapping[str, str]) -> list[DecisionRecord]:
    """Those of these runs (ids with their workflows), in the order of the runs."""
    found: dict[str, list[DecisionRecord]] = {run_id: [] for run_id in workflows}
    for row in connection.execute(_events(list(workflows))).mappings() if workflows else ():
        run_id, decided = row["run_id"], event_from_json(Decided.kind, json.loads(row["data"]))
        assert isinstance(decided, Decided)
        found[run_id].append(DecisionRecord(run_id, workflows[run_id], row["seq"], text_to_time(row["time"]), decided))
    return [record for of_run in found.values() for record in of_run]


def _runs(query: DecisionFilter, after: tuple[str, str] | None) -> Select[tuple[str, str, str]]:
    """The next runs in the order of their beginning: `run_by_time` gives it."""
    found = select(run.c.run_id, run.c.workflow, run.c.started_at).where(NO_SWEEP)
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


def _events(runs: list[str]) -> Select[tuple[str, int, str, str]]:
    return (
        select(event.c.run_id, event.c.seq, event.c.time, event.c.data)
        .where(event.c.run_id.in_(runs), event.c.kind == Decided.kind)
        .order_by(event.c.run_id, event.c.seq)
    )
