"""Runs that wait for a worker, shared by all workers on one ledger.

A worker claims the oldest run that the limits leave room for; claiming is one transaction that
excludes every other, so that a limit holds over all workers. Synchronous and safe for threads;
every method may raise LedgerError.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import Connection, Engine, RowMapping, Select, Update, delete, insert, select, update
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.jsontypes import JsonObject
from orchestrator.ledger.faults import ledger_error
from orchestrator.ledger.states import RunState
from orchestrator.ledger.storage.codec import canonical_json
from orchestrator.ledger.storage.connect import BEGIN, ONLY_ONE
from orchestrator.ledger.storage.tables import queued_run, run, workflow_text
from orchestrator.ledger.storage.times import text_to_time, time_to_text

_GOES_ON = (RunState.RUNNING.value, RunState.WAITING.value)
"""A run that waits for somebody to agree is still one of the queue's, and takes nobody's place."""

LOOK_AHEAD = 200
"""How many waiting runs are looked at for one that the limits leave room for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedRun:
    """A run that is to be carried out. `connections` are those that its grants name; `max_runs` 0 is no limit."""

    run_id: str
    workflow: str
    digest: str
    inputs: JsonObject
    trigger: str
    connections: tuple[str, ...]
    max_runs: int
    queued_at: datetime
    claimed_by: str | None = None
    tries: int = 0
    """How often it was claimed and not begun, a claim that holds now included."""
    reason: str = ""
    """Why, in the words of whoever queued it."""
    directory: str = ""
    """Where the workflow's file was."""


class RunQueue:
    """The table `queued_run` of a ledger."""

    def __init__(self, engine: Engine, label: str) -> None:
        self._engine = engine
        self._label = label

    def add(self, queued: QueuedRun, *, workflow: str) -> bool:
        """Enter a run with the text of its workflow; False if its id is in the queue or in the ledger already."""
        with self._writing() as connection:
            for table in (queued_run, run):
                if connection.execute(select(table.c.run_id).where(table.c.run_id == queued.run_id)).first():
                    return False
            known = select(workflow_text.c.digest).where(workflow_text.c.digest == queued.digest)
            if connection.execute(known).first() is None:
                connection.execute(insert(workflow_text).values(digest=queued.digest, text=workflow))
            connection.execute(
                insert(queued_run).values(
                    run_id=queued.run_id,
                    workflow=queued.workflow,
                    digest=queued.digest,
                    inputs=canonical_json(queued.inputs),
                    trigger=queued.trigger,
                    connections=canonical_json(list(queued.connections)),
                    max_runs=queued.max_runs,
                    queued_at=time_to_text(queued.queued_at),
                    reason=queued.reason,
                    directory=queued.directory,
                )
            )
            return True

    def claim(self, runner_id: str, limits: Mapping[str, int], *, besides: Collection[str] = ()) -> QueuedRun | None:
        """Claim the oldest run that there is room for, and count the try before anybody looks into the run.

        `limits` are runs at once by connection, over all workers; `besides` are runs that the worker leaves alone.
        """
        with self._writing() as connection:
            self._clear(connection)
            taken = [_queued(row) for row in connection.execute(_rows(claimed=True).where(_DRIVEN)).mappings()]
            workflows = Counter(each.workflow for each in taken)
            connections = Counter(name for each in taken for name in each.connections)
            waits = _rows(claimed=False).where(queued_run.c.run_id.not_in(besides)) if besides else _rows(claimed=False)
            for row in connection.execute(waits.limit(LOOK_AHEAD)).mappings():
                waiting = _queued(row)
                if waiting.max_runs and workflows[waiting.workflow] >= waiting.max_runs:
                    continue
                if any(name in limits and connections[name] >= limits[name] for name in waiting.connections):
                    continue
                this = queued_run.c.run_id == waiting.run_id
                tries = waiting.tries + 1
                connection.execute(update(queued_run).where(this).values(claimed_by=runner_id, tries=tries))
                return replace(waiting, claimed_by=runner_id, tries=tries)
            return None

    def release(self, runner_id: str, *, run_id: str | None = None, tried: bool = True) -> int:
        """Give back what a worker claimed and never begun, all of it or one run; how many there were.

        Not `tried`: the worker has had no time for it, which is nothing that speaks against the run.
        """
        with self._writing() as connection:
            given_back = giving_back(runner_id, tried=tried)
            if run_id is not None:
                given_back = given_back.where(queued_run.c.run_id == run_id)
            return connection.execute(given_back).rowcount

    def remove(self, run_id: str) -> bool:
        """Take a run out that nobody has claimed; False if there is none."""
        with self._writing() as connection:
            waiting = (queued_run.c.run_id == run_id) & queued_run.c.claimed_by.is_(None)
            return connection.execute(delete(queued_run).where(waiting)).rowcount == 1

    def holds(self, run_id: str) -> bool:
        """Whether a run came through the queue and has not ended, as far as the queue knows."""
        with self._connection(begin="BEGIN") as connection:
            return (
                connection.execute(select(queued_run.c.run_id).where(queued_run.c.run_id == run_id)).first() is not None
            )

    def all(self) -> Sequence[QueuedRun]:
        """Every run that waits or goes on, oldest first."""
        with self._connection(begin="BEGIN") as connection:
            ended = select(run.c.run_id).where(run.c.state.not_in(_GOES_ON))
            query = select(queued_run).where(queued_run.c.run_id.not_in(ended))
            rows = connection.execute(query.order_by(queued_run.c.queued_at, queued_run.c.run_id)).mappings()
            return [_queued(row) for row in rows]

    def _clear(self, connection: Connection) -> None:
        """Take out what has ended."""
        if connection.dialect.name == "postgresql":
            connection.execute(ONLY_ONE)
        ended = select(run.c.run_id).where(run.c.state.not_in(_GOES_ON))
        connection.execute(delete(queued_run).where(queued_run.c.run_id.in_(ended)))

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with self._connection(begin="BEGIN IMMEDIATE") as connection, connection.begin():
            yield connection

    @contextmanager
    def _connection(self, *, begin: str) -> Iterator[Connection]:
        try:
            with self._engine.connect().execution_options(**{BEGIN: begin}) as connection:
                yield connection
        except SQLAlchemyError as error:
            raise ledger_error(error, self._label) from error


_DRIVEN = queued_run.c.run_id.not_in(select(run.c.run_id).where(run.c.state == RunState.WAITING.value))


def giving_back(runner_id: str, *, tried: bool) -> Update:
    """The statement that gives back what a worker claimed and never begun."""
    theirs = (queued_run.c.claimed_by == runner_id) & queued_run.c.run_id.not_in(select(run.c.run_id))
    tries = queued_run.c.tries - (0 if tried else 1)
    return update(queued_run).where(theirs).values(claimed_by=None, tries=tries)


def _rows(*, claimed: bool) -> Select[tuple[object, ...]]:
    condition = queued_run.c.claimed_by.is_not(None) if claimed else queued_run.c.claimed_by.is_(None)
    return select(queued_run).where(condition).order_by(queued_run.c.queued_at, queued_run.c.run_id)


def _queued(row: RowMapping) -> QueuedRun:
    return QueuedRun(
        run_id=row["run_id"],
        workflow=row["workflow"],
        digest=row["digest"],
        inputs=json.loads(row["inputs"]),
        trigger=row["trigger"],
        connections=tuple(json.loads(row["connections"])),
        max_runs=row["max_runs"],
        queued_at=text_to_time(row["queued_at"]),
        claimed_by=row["claimed_by"],
        tries=row["tries"],
        reason=row["reason"],
        directory=row["directory"],
    )
