"""Commits batches of jobs, each batch in one transaction, over one connection of its own.

A job that fails fails alone. What fails the whole batch is sorted by `faults.blame`: a lost connection is
replaced once, a statement that the database refuses is isolated by committing the jobs one by one,
and where nothing can be written every job of the batch is told so.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from sqlalchemy import Engine, PoolProxiedConnection
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.errors import LedgerError, OrchestratorError
from orchestrator.ledger.faults import Blame, blame, ledger_error
from orchestrator.ledger.location import Location
from orchestrator.ledger.writing.jobs import Job
from orchestrator.ledger.writing.statements import compile_statements
from orchestrator.ledger.writing.transaction import Pipeline, Transaction, Views

MAX_VIEWS = 1024
"""Runs that the writer remembers; a run that it forgot is read again."""


@dataclass(slots=True)
class Outcome:
    """What became of a job: the run's fence, or why it was not done."""

    job: Job
    fence: int = 0
    error: OrchestratorError | None = None


class Committer:
    """Not safe for threads: the writer's one thread owns it."""

    def __init__(self, engine: Engine, location: Location) -> None:
        self._engine = engine
        self._location = location
        self._statements = compile_statements(engine.dialect)
        self._driver_errors = (
            engine.dialect.loaded_dbapi.Error,
            SQLAlchemyError,
            LedgerError,
            OverflowError,
            ValueError,
        )
        self._connection: PoolProxiedConnection | None = None
        self._file_id = _file_id(location)
        self._views: Views = {}

    def commit(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Do the jobs in order, durably. One that fails leaves nothing behind, and its outcome says why."""
        outcomes = [Outcome(job) for job in jobs]
        self._commit(outcomes, may_reconnect=True)
        return outcomes

    def close(self) -> None:
        """Give the connection back. A later commit takes another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _discard(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.invalidate()

    def _commit(self, outcomes: Sequence[Outcome], *, may_reconnect: bool) -> None:
        try:
            self._transact(outcomes)
        except self._driver_errors as error:
            at_fault = blame(error, lost=self._abandon(outcomes, error))
            if at_fault is Blame.CONNECTION:
                self._discard()
            if at_fault is Blame.CONNECTION and may_reconnect:
                self._commit(outcomes, may_reconnect=False)
            elif at_fault is Blame.STATEMENT and len(outcomes) > 1:
                for outcome in outcomes:
                    self._commit([outcome], may_reconnect=may_reconnect)
            else:
                for outcome in outcomes:
                    outcome.error = ledger_error(error, self._location.label, at_fault)
                    outcome.error.__cause__ = error
        except BaseException as error:
            self._abandon(outcomes, error)
            raise

    def _transact(self, outcomes: Sequence[Outcome]) -> None:
        self._check_file()
        connection = self._connection = self._connection or self._engine.raw_connection()
        cursor = connection.cursor()
        try:
            if self._statements.begin is not None:
                cursor.execute(self._statements.begin)
            transaction = Transaction(cursor, self._statements, self._views, _pipeline(connection))
            tasks = {each.job.task for each in outcomes if each.job.task is not None}
            transaction.lock(tasks, {name for each in outcomes for name in each.job.gates})
            for outcome in outcomes:
                self._execute(outcome, transaction)
            transaction.flush()
            connection.commit()
        finally:
            cursor.close()
        self._forget_finished(outcomes)

    def _execute(self, outcome: Outcome, transaction: Transaction) -> None:
        """Do one job, unless it was done by a commit whose answer was lost."""
        job = outcome.job
        sent = job.head
        if sent is not None and transaction.holds(job.run_id, sent):
            return
        try:
            outcome.fence = job.execute(transaction)
        except OrchestratorError as error:
            # A run that the lost commit begins cannot be seen, or waited for, before its id is found taken.
            if sent is None or not transaction.holds(job.run_id, sent):
                outcome.error = error

    def _check_file(self) -> None:
        """SQLite goes on writing to a file that was deleted or replaced, where nobody will ever find it."""
        if _file_id(self._location) != self._file_id:
            raise LedgerError(
                f"the {self._location.label} was deleted or replaced while it was in use",
                hint="Put the file back, or run again with a new ledger; then look for leases that were left open.",
            )

    def _abandon(self, outcomes: Sequence[Outcome], error: BaseException) -> bool:
        """Roll back and forget what was assumed. True if the connection is unusable."""
        for outcome in outcomes:
            outcome.error = None
            for run_id in (outcome.job.run_id, outcome.job.task or ""):
                self._views.pop(run_id, None)
        connection = self._connection
        if connection is None:
            return False
        dialect = self._engine.dialect
        try:
            connection.rollback()
        except dialect.loaded_dbapi.Error:
            return True
        return isinstance(error, dialect.loaded_dbapi.Error) and dialect.is_disconnect(
            error, connection.dbapi_connection, None
        )

    def _forget_finished(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            view = self._views.get(outcome.job.run_id)
            if view is not None and view.rows.run["finished_at"] is not None:
                del self._views[outcome.job.run_id]
            self._views.pop(outcome.job.task or "", None)  # any process adds to it
        while len(self._views) > MAX_VIEWS:
            del self._views[next(iter(self._views))]


def _pipeline(connection: PoolProxiedConnection) -> Callable[[], Pipeline]:
    """psycopg's pipeline mode, where the driver and its libpq have it."""
    driver = connection.driver_connection
    if driver is not None and hasattr(driver, "pipeline"):
        from psycopg import capabilities

        if capabilities.has_pipeline():
            pipeline: Callable[[], Pipeline] = driver.pipeline
            return pipeline
    return nullcontext


def _file_id(location: Location) -> tuple[int, int] | None:
    """Device and inode of an SQLite ledger, or None if there is no file."""
    if location.path is None:
        return None
    try:
        status = os.stat(location.path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino
