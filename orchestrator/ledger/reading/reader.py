"""The reading side. Synchronous: the command line, the web page's threads and tests use it."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime

from sqlalchemy import Connection, Engine, RowMapping
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.errors import LedgerError, UnknownRun
from orchestrator.ledger.faults import ledger_error
from orchestrator.ledger.findings import DecisionFilter, DecisionRecord, Examined, Exposure
from orchestrator.ledger.lease import OPEN, LeaseState
from orchestrator.ledger.log.reader import LogReader
from orchestrator.ledger.places import Places
from orchestrator.ledger.reading import examination, lease_queries, queries
from orchestrator.ledger.reading.decisions import decisions
from orchestrator.ledger.reading.exposure import exposure_between, exposure_record
from orchestrator.ledger.reading.history import Chapter, HistoryFilter, history
from orchestrator.ledger.reading.lease_search import newest_leases
from orchestrator.ledger.reading.lease_stream import lease_paths, leases_between
from orchestrator.ledger.reading.records import (
    event_record,
    lease_record,
    run_record,
    step_record,
    task_record,
)
from orchestrator.ledger.states import IdKind, RunState, TaskEnd, TaskState
from orchestrator.ledger.storage.budgets import calls_by_state, is_idle
from orchestrator.ledger.storage.chain import Head, StoredEvent, first_break, genesis
from orchestrator.ledger.storage.codec import ValueKind
from orchestrator.ledger.storage.places import moments, places_held, places_of, waiters
from orchestrator.ledger.storage.projections import DROPPED
from orchestrator.ledger.storage.times import time_to_text
from orchestrator.ledger.types import (
    EventRecord,
    LeaseFilter,
    LeaseRecord,
    RunFilter,
    RunRecord,
    StepRecord,
    TaskRecord,
)

ROWS_AT_ONCE = 1000


class Reader:
    """Implements LedgerReader. Safe for threads. Every method may raise LedgerError."""

    def __init__(self, engine: Engine, label: str) -> None:
        self._engine = engine
        self._label = label
        self.log = LogReader(engine, label)
        """The log over all runs."""

    def run(self, run_id: str) -> RunRecord | None:
        """The run, or None; also one that is a call in a task."""
        with self._reading() as connection:
            row = connection.execute(queries.run_by_id(run_id)).mappings().first()
            return None if row is None or row["task"] == run_id else run_record(row)

    def runs(
        self, *, workflow: str | None = None, state: RunState | None = None, limit: int = 50
    ) -> Sequence[RunRecord]:
        """Those of a `RunFilter` of these parts."""
        return self.newest_runs(RunFilter(workflow=workflow, state=state, limit=limit))

    def newest_runs(self, query: RunFilter) -> Sequence[RunRecord]:
        """Newest first."""
        with self._reading() as connection:
            rows = connection.execute(*queries.recent_runs(query)).mappings().all()
            return [run_record(row) for row in rows]

    def retry_of(self, run_id: str) -> RunRecord | None:
        """The run that goes on from this one, or None."""
        with self._reading() as connection:
            row = connection.execute(queries.retries_of([run_id])).mappings().first()
            return None if row is None else run_record(row)

    def retries(self, run_ids: Collection[str]) -> Mapping[str, str]:
        """Of those of these runs that have been retried, the ids of their retries."""
        found: dict[str, str] = {}
        asked = list(run_ids)
        with self._reading() as connection:
            for first in range(0, len(asked), ROWS_AT_ONCE):
                rows = connection.execute(queries.retries_of(asked[first : first + ROWS_AT_ONCE])).mappings()
                found.update({str(row["retry_of"]): str(row["run_id"]) for row in rows})
        return found

    def task(self, task_id: str) -> TaskRecord | None:
        """The task, or None."""
        with self._reading() as connection:
            row = connection.execute(queries.run_by_id(task_id)).mappings().first()
            return task_record(row) if row is not None and row["task"] == task_id else None

    def tasks(
        self,
        *,
        agent: str | None = None,
        state: TaskState | None = None,
        before: TaskRecord | None = None,
        limit: int = 50,
    ) -> Sequence[TaskRecord]:
        """Newest first; with `before` only those that stand after it in such a list."""
        with self._reading() as connection:
            rows = connection.execute(queries.recent_tasks(agent, state, limit, before)).mappings().all()
            return [task_record(row) for row in rows]

    def calls(self, task_id: str) -> Sequence[RunRecord]:
        """The calls in a task, in the order in which they began."""
        with self._reading() as connection:
            return [run_record(row) for row in connection.execute(queries.calls_of(task_id)).mappings()]

    def tasks_over(self, now: datetime) -> Sequence[tuple[TaskRecord, TaskEnd]]:
        """The open tasks that are to be closed, with what ends them."""
        with self._reading() as connection:
            rows = connection.execute(queries.doubtful_tasks(time_to_text(now))).mappings().all()
            found = [(task_record(row), self._end_of(connection, row, time_to_text(now))) for row in rows]
        return [(record, end) for record, end in found if end is not None]

    def _end_of(self, connection: Connection, row: RowMapping, now: str) -> TaskEnd | None:
        if row[queries.CUT_OFF]:
            return TaskEnd.CUT_OFF
        if row["deadline"] <= now:
            return TaskEnd.DEADLINE
        calls = connection.execute(calls_by_state(row["run_id"])).mappings().all()
        return TaskEnd.IDLE if is_idle(dict(row), [dict(each) for each in calls], now=now) else None

    def stray_calls(self) -> Sequence[RunRecord]:
        """The calls that go on although their task is closed."""
        with self._reading() as connection:
            return [run_record(row) for row in connection.execute(queries.stray_calls()).mappings()]

    def under_way(self, agent: str | None = None) -> Sequence[RunRecord]:
        """The runs of an agent, or of all, that go on or wait for somebody to agree, calls among them."""
        with self._reading() as connection:
            found = (connection.execute(query(agent)).mappings() for query in (queries.running_of, queries.waiting_of))
            return [run_record(row) for part in found for row in part]

    def steps(self, run_id: str) -> Sequence[StepRecord]:
        """The steps that were tried or decided, in the order in which the run declared them."""
        with self._reading(snapshot=True) as connection:
            found = [step_record(row) for row in connection.execute(queries.steps_of(run_id)).all()]
            place = _places(connection, run_id)
            return sorted(found, key=lambda each: place(each.step))

    def some_steps(self, run_id: str, first: int, most: int) -> tuple[Sequence[StepRecord], int]:
        """So many of these steps, after the first ones, and how many there are."""
        with self._reading(snapshot=True) as connection:
            place = _places(connection, run_id)
            names = sorted((str(name) for (name,) in connection.execute(queries.step_names(run_id)).all()), key=place)
            wanted = queries.steps_of(run_id, names[first : first + most])
            found = [step_record(row) for row in connection.execute(wanted).all()]
            return sorted(found, key=lambda each: place(each.step)), len(names)

    def lease(self, lease_id: str) -> LeaseRecord | None:
        """The lease, or None."""
        with self._reading() as connection:
            row = connection.execute(lease_queries.lease_by_id(lease_id)).first()
            return None if row is None else lease_record(row)

    def ids(self, kind: IdKind, beginnings: Collection[str], limit: int) -> Sequence[str]:
        """The ids of this kind that begin with any of these texts, in order, not more than `limit`."""
        with self._reading() as connection:
            found = (connection.execute(queries.ids_beginning(kind, each, limit)).scalars() for each in beginnings)
            return sorted({str(each) for part in found for each in part})[:limit]

    def workflows(self, limit: int) -> Sequence[str]:
        """The names of the workflows of which there are runs or tasks, in order: a step in an index for each."""
        with self._reading() as connection:
            return [str(name) for name in connection.execute(queries.workflow_names(), {"most": limit}).scalars()]

    def leases(self, query: LeaseFilter) -> Sequence[LeaseRecord]:
        """Newest first; `since` is included, `until` is not."""
        with self._reading(snapshot=True) as connection:
            return [lease_record(row) for row in newest_leases(connection, query)]

    def leases_of_ended_runs(self, *, dead: Collection[str] = ()) -> Sequence[LeaseRecord]:
        """Every open lease whose run has ended, newest first; with the ids of dead processes also those of the runs
        that these drive. One query, as long as what is open, however many leases are closed."""
        with self._reading() as connection:
            rows = connection.execute(lease_queries.leases_of_ended_runs(dead)).all()
            return [lease_record(row) for row in rows]

    def places(self, now: datetime) -> Places:
        """What is held of connections, by leases that are not over by this time, and the attempts that wait."""
        with self._reading(snapshot=True) as connection:
            held = connection.execute(places_held(connection.dialect.name), moments(now)).mappings().all()
            return places_of(map(dict, held), map(dict, connection.execute(waiters()).mappings()))

    def revoking_leases(self, most: int) -> Sequence[LeaseRecord]:
        """At most so many of the leases that are being taken back: first what was tried in vain most often, then what
        has taken longest. Reads what is open and nothing else."""
        with self._reading() as connection:
            rows = connection.execute(lease_queries.revoking_leases(), {"most": most}).all()
            return [lease_record(row) for row in rows]

    def open_lease_counts(self) -> Mapping[LeaseState, int]:
        """How many leases are in each open state. Reads what is open and nothing else."""
        with self._reading() as connection:
            rows = connection.execute(lease_queries.open_leases_by_state()).mappings()
            counted = {str(row["state"]): int(row["leases"]) for row in rows}
            return {state: counted.get(state.value, 0) for state in sorted(OPEN)}

    def events(
        self,
        run_id: str,
        *,
        lease_id: str | None = None,
        step: str | None = None,
        kind: str | None = None,
        after: int | None = None,
        limit: int | None = None,
    ) -> Sequence[EventRecord]:
        """In order of their sequence number, from the one `after` this; with a lease, step or kind only those of it.

        `limit` bounds how many are read.
        """
        wanted = {name: value for name, value in (("lease_id", lease_id), ("step", step)) if value is not None}
        with self._reading() as connection:
            rows = connection.execute(*queries.events_of(run_id, kind, after, limit, list(wanted.values()))).all()
            records = [event_record(StoredEvent._make(row)) for row in rows]
        return [each for each in records if all(each.data.get(name) == value for name, value in wanted.items())]

    def runs_with_values(
        self, *, inputs_before: datetime | None, outputs_before: datetime | None
    ) -> Iterator[tuple[str, frozenset[str]]]:
        """The runs and tasks that ended before these times, and which of their values are to be dropped, in batches."""
        limits = {"inputs": inputs_before, "outputs": outputs_before}
        texts = {name: None if moment is None else time_to_text(moment) for name, moment in limits.items()}
        after = ("", "")
        while True:
            query = queries.runs_with_values(texts["inputs"], texts["outputs"], after, ROWS_AT_ONCE)
            with self._reading() as connection:
                rows = connection.execute(query).all()
            for run_id, finished_at, dropped in rows:
                due = {kind for kind, before in texts.items() if before is not None and finished_at < before}
                yield run_id, frozenset(kind for kind in due if not dropped & DROPPED[ValueKind(kind)])
            if len(rows) < ROWS_AT_ONCE:
                return
            after = (rows[-1].finished_at, rows[-1].run_id)

    def inline_runs(self) -> int:
        """How many runs are of before values lay beside their events: what these hold stays."""
        with self._reading() as connection:
            return int(connection.execute(queries.inline_runs()).scalar() or 0)

    def positions(self, run_ids: Collection[str]) -> Mapping[str, int]:
        """How many events each of these runs and tasks has; one that is not there is left out."""
        with self._reading() as connection:
            rows = connection.execute(queries.positions_of(run_ids)).mappings() if run_ids else ()
            return {str(row["run_id"]): int(row["seq"]) for row in rows}

    def exposure(self, since: datetime, until: datetime) -> Sequence[Exposure]:
        """Of the credentials that were asked for in this time and issued: how long they were held, by their origin."""
        with self._reading() as connection:
            statement = exposure_between(connection.dialect.name)
            within = {"since": time_to_text(since), "until": time_to_text(until)}
            return [exposure_record(row) for row in connection.execute(statement, within).mappings()]

    def decisions(self, query: DecisionFilter) -> Iterator[DecisionRecord]:
        """In the order in which their runs began, in batches; runs may begin meanwhile."""
        return decisions(self._snapshot, query)

    def history(self, query: HistoryFilter) -> Iterator[Chapter]:
        """All events of the runs that a filter asks for, in small batches; runs may begin and go on meanwhile."""
        return history(self._snapshot, query)

    def leases_between(self, since: datetime | None, until: datetime | None) -> Iterator[LeaseRecord]:
        """Those requested in this time, oldest first and in batches; before them the older ones that are open."""
        return leases_between(self._snapshot, since, until)

    def lease_paths(self) -> set[str]:
        """What leases were ever asked of: Vault paths, and the policies of step tokens."""
        return lease_paths(self._snapshot)

    def verify(self, run_id: str) -> int | None:
        """The sequence number of the first event that is changed, missing or foreign, or None if the history is whole.

        Raises UnknownRun if the ledger has neither the run nor events of it. What it cannot see is a
        history that was rewritten from some event to the end together with the run's head.
        """
        with self._reading(snapshot=True) as connection:
            run = connection.execute(queries.run_by_id(run_id)).mappings().first()
            head = _head(run_id, run)
            streaming = connection.execution_options(yield_per=ROWS_AT_ONCE)
            with streaming.execute(*queries.events_of(run_id)) as stored:
                broken = first_break(run_id, map(StoredEvent._make, stored), head)
        if run is None and broken is None:
            raise UnknownRun(
                f"no run {run_id} is in this ledger", hint="`orchestrator runs list` shows those that are."
            )
        return broken

    def verified(self, run_id: str, most: int | None = None) -> tuple[Sequence[EventRecord], int | None]:
        """The first `most` events of a run, and what `verify` says of it where it has fewer: each is read once."""
        with self._reading(snapshot=True) as connection:
            head = _head(run_id, connection.execute(queries.run_by_id(run_id)).mappings().first())
            rows = connection.execute(*queries.events_of(run_id, limit=most)).all()
            stored = list(map(StoredEvent._make, rows))
            events = [event_record(each) for each in stored if each.seq > 0]  # what has another number is a break
            whole = most is None or len(events) < most
            return events, first_break(run_id, stored, head, values=False) if whole else None

    def examine(self, run_id: str) -> Examined:
        """As `verify`, and whether the tables say of the run what its events say. Raises UnknownRun."""
        found = examination.examine(self._snapshot, run_id)
        if found is None:
            raise UnknownRun(
                f"no run {run_id} is in this ledger", hint="`orchestrator runs list` shows those that are."
            )
        return found

    def examine_all(self) -> Iterator[Examined]:
        """The same of every run, by id, in batches; runs may go on meanwhile."""
        return examination.examine_all(self._snapshot)

    def _snapshot(self) -> AbstractContextManager[Connection]:
        return self._reading(snapshot=True)

    @contextmanager
    def _reading(self, *, snapshot: bool = False) -> Iterator[Connection]:
        """A connection whose statements, with `snapshot`, all see the same state (on SQLite they always do).

        Without it PostgreSQL is asked for no transaction: its beginning and its end are a round trip each.
        """
        try:
            with self._engine.connect() as connection:
                if self._engine.dialect.name == "postgresql":
                    connection.execution_options(isolation_level="REPEATABLE READ" if snapshot else "AUTOCOMMIT")
                yield connection
        except SQLAlchemyError as error:
            raise ledger_error(error, self._label) from error
        except (ValueError, TypeError) as error:
            raise LedgerError(
                f"the {self._label} holds a row that was not written by this ledger",
                hint="Run `orchestrator runs verify`.",
            ) from error


def _head(run_id: str, run: RowMapping | None) -> Head:
    """Where the chain of a run ends, by its row."""
    return genesis(run_id) if run is None else Head(run["seq"], run["head"])


def _places(connection: Connection, run_id: str) -> Callable[[str], tuple[int, str]]:
    """Where a step stands among those that its run declared; at the end by name, if it did not."""
    declared = connection.execute(queries.declared_steps(run_id)).first()
    places = {name: number for number, name in enumerate(json.loads(declared.steps) if declared else ())}
    return lambda name: (places.get(name, len(places)), name)
