"""What was asked of the shared queue: each run that is to be carried out, until it has ended.

Which of them is next, and who carries it out, is not said here but by what holds the queue
(`orchestrator.queue`). Synchronous and safe for threads; every method may raise LedgerError.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import CompoundSelect, Connection, Engine, RowMapping, delete, select, update
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.jsontypes import JsonObject
from orchestrator.ledger.coordination.runners import INSERT, keep_text
from orchestrator.ledger.faults import ledger_error
from orchestrator.ledger.states import RunState
from orchestrator.ledger.storage.codec import canonical_json
from orchestrator.ledger.storage.connect import BEGIN
from orchestrator.ledger.storage.tables import queue_pause, queued_run, run, schedule
from orchestrator.ledger.storage.times import text_to_time, time_to_text

_GOES_ON = (RunState.RUNNING.value, RunState.WAITING.value)
"""A run that waits for somebody to agree is still one of the queue's."""

CLEARED_AT_ONCE = 1000
"""How many runs that have ended are taken out in one transaction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedRun:
    """A run that is to be carried out, as it was asked for."""

    run_id: str
    workflow: str
    digest: str
    inputs: JsonObject
    trigger: str
    queued_at: datetime
    tries: int = 0
    """How often a worker has taken it in hand and not begun it, one that does so now included."""
    reason: str = ""
    """Why, in the words of whoever queued it."""
    directory: str = ""
    """Where the workflow's file was."""
    retry_of: str = ""
    """The failed run that it goes on from."""


@dataclass(frozen=True, slots=True)
class Pause:
    """That no run of a workflow begins, or none at all where its name is empty."""

    workflow: str
    by: str
    reason: str
    at: datetime


class NotAlone(Exception):
    """Another run of the same workflow has not ended, and the one that was to be entered is to be alone."""


class RunQueue:
    """The tables `queued_run` and `queue_pause` of a ledger."""

    def __init__(self, engine: Engine, label: str) -> None:
        self._engine = engine
        self._label = label

    def add(
        self,
        queued: QueuedRun,
        *,
        workflow: str,
        along: Callable[[Connection], None] = lambda connection: None,
        alone: Collection[str] = (),
    ) -> bool:
        """Enter a run with the text of its workflow; False if its id is in the queue or in the ledger already.

        `along` writes what belongs to it in the same transaction. Raises NotAlone if there is a run of its workflow
        with one of the triggers `alone` that has not ended: of several that ask at once, one gets through.
        """
        with self._writing() as connection:
            if alone:  # they take turns at the row of the workflow
                connection.execute(select(schedule).where(schedule.c.workflow == queued.workflow).with_for_update())
            if connection.execute(select(run.c.run_id).where(run.c.run_id == queued.run_id)).first():
                return False
            if alone:
                unended = {str(row[0]) for row in connection.execute(_unended(queued.workflow, alone))}
                if unended - {queued.run_id}:
                    raise NotAlone
            entry = INSERT[connection.dialect.name](queued_run).values(
                run_id=queued.run_id,
                workflow=queued.workflow,
                digest=queued.digest,
                inputs=canonical_json(queued.inputs),
                trigger=queued.trigger,
                queued_at=time_to_text(queued.queued_at),
                tries=queued.tries,
                reason=queued.reason,
                directory=queued.directory,
                retry_of=queued.retry_of,
            )
            entered = entry.on_conflict_do_nothing().returning(queued_run.c.run_id)
            if connection.execute(entered).first() is None:
                return False
            keep_text(connection, queued.digest, workflow)
            along(connection)
            return True

    def tried(self, run_id: str) -> tuple[QueuedRun, Pause | None] | None:
        """The run, once it is counted that somebody takes it in hand; None where nobody has asked for it.

        With it comes the pause because of which it does not begin, and then nothing was counted.
        """
        this = queued_run.c.run_id == run_id
        with self._writing() as connection:
            row = connection.execute(select(queued_run).where(this)).mappings().first()
            if row is None:
                return None
            concerned = select(queue_pause).where(queue_pause.c.workflow.in_(["", row["workflow"]]))
            if paused := connection.execute(concerned).mappings().first():
                return _queued(row), _pause(paused)
            counted = update(queued_run).where(this).values(tries=queued_run.c.tries + 1).returning(queued_run)
            row = connection.execute(counted).mappings().first()
            return None if row is None else (_queued(row), None)

    def untried(self, run_id: str) -> None:
        """Take a try back: whoever counted it has had no time for the run, which is nothing that speaks against it."""
        with self._writing() as connection:
            this = (queued_run.c.run_id == run_id) & (queued_run.c.tries > 0)
            connection.execute(update(queued_run).where(this).values(tries=queued_run.c.tries - 1))

    def remove(self, run_ids: Collection[str]) -> int:
        """Take runs out; how many there were."""
        with self._writing() as connection:
            return connection.execute(delete(queued_run).where(queued_run.c.run_id.in_(run_ids))).rowcount

    def clear(self) -> int:
        """Take out what has ended, no more than CLEARED_AT_ONCE; how many there were."""
        ended = select(run.c.run_id).where(run.c.run_id == queued_run.c.run_id, run.c.state.not_in(_GOES_ON))
        with self._writing() as connection:
            some = select(queued_run.c.run_id).where(ended.exists()).limit(CLEARED_AT_ONCE)
            return connection.execute(delete(queued_run).where(queued_run.c.run_id.in_(some))).rowcount

    def pause(self, workflow: str, *, by: str, reason: str, at: datetime) -> None:
        """Let no run of a workflow begin from now on, or of none at all where the name is empty."""
        values = {"by": by, "reason": reason, "at": time_to_text(at)}
        with self._writing() as connection:
            entry = INSERT[connection.dialect.name](queue_pause).values(workflow=workflow, **values)
            connection.execute(entry.on_conflict_do_update(index_elements=["workflow"], set_=values))

    def resume(self, workflow: str) -> bool:
        """Take that back; False where it was not paused."""
        with self._writing() as connection:
            return connection.execute(delete(queue_pause).where(queue_pause.c.workflow == workflow)).rowcount == 1

    def pauses(self) -> Sequence[Pause]:
        """What is paused: the whole queue has the empty name, and comes first."""
        with self._connection(begin="BEGIN") as connection:
            rows = connection.execute(select(queue_pause).order_by(queue_pause.c.workflow)).mappings()
            return [_pause(row) for row in rows]

    def get(self, run_id: str) -> QueuedRun | None:
        """A run as it was asked for."""
        with self._connection(begin="BEGIN") as connection:
            row = connection.execute(select(queued_run).where(queued_run.c.run_id == run_id)).mappings().first()
            return None if row is None else _queued(row)

    def holds(self, run_id: str) -> bool:
        """Whether a run came through the queue and has not ended, as far as the queue knows."""
        return self.get(run_id) is not None

    def of(self, workflow: str) -> Sequence[QueuedRun]:
        """The runs of a workflow that have not begun, oldest first."""
        with self._connection(begin="BEGIN") as connection:
            begun = select(run.c.run_id).where(run.c.run_id == queued_run.c.run_id)
            query = select(queued_run).where(queued_run.c.workflow == workflow, ~begun.exists())
            rows = connection.execute(query.order_by(queued_run.c.queued_at, queued_run.c.run_id)).mappings()
            return [_queued(row) for row in rows]

    def unended(self, workflow: str, triggers: Collection[str]) -> frozenset[str]:
        """The runs of a workflow with these triggers that have not ended: those that wait in the queue, too.

        As of one moment, since a run that begins is in the one place and then in the other.
        """
        with self._connection(begin="BEGIN") as connection:
            return frozenset(str(row[0]) for row in connection.execute(_unended(workflow, triggers)))

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


def _unended(workflow: str, triggers: Collection[str]) -> CompoundSelect[tuple[str]]:
    begun = select(run.c.run_id).where(run.c.workflow == workflow, run.c.trigger.in_(triggers))
    there = select(run.c.run_id).where(run.c.run_id == queued_run.c.run_id)
    put_in = select(queued_run.c.run_id).where(queued_run.c.workflow == workflow, queued_run.c.trigger.in_(triggers))
    return begun.where(run.c.state.in_(_GOES_ON)).union(put_in.where(~there.exists()))


def _pause(row: RowMapping) -> Pause:
    return Pause(row["workflow"], row["by"], row["reason"], text_to_time(row["at"]))


def _queued(row: RowMapping) -> QueuedRun:
    return QueuedRun(
        run_id=row["run_id"],
        workflow=row["workflow"],
        digest=row["digest"],
        inputs=json.loads(row["inputs"]),
        trigger=row["trigger"],
        queued_at=text_to_time(row["queued_at"]),
        tries=row["tries"],
        reason=row["reason"],
        directory=row["directory"],
        retry_of=row["retry_of"],
    )
