"""The shared queue, as everybody sees it who asks something of it: DBOS's queues, in the ledger's database.

A run is entered in the ledger's transaction, so that there is never one without the other. Synchronous and safe for
threads; every method may raise LedgerError.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from dbos import DBOSClient
from dbos import error as dbos_error
from psycopg import OperationalError
from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.errors import LedgerError
from orchestrator.ledger.coordination.queue import QueuedRun, RunQueue
from orchestrator.ledger.faults import ledger_error
from orchestrator.ledger.location import Location
from orchestrator.ledger.storage.connect import connect
from orchestrator.queue import tables
from orchestrator.queue.lanes import MOST, Limits
from orchestrator.queue.names import APPLICATION, FORMAT, SCHEMA, WORKFLOW
from orchestrator.queue.references import References
from orchestrator.queue.rows import constrain, refuse_pickle
from orchestrator.queue.tables import Claimed, InQueue, QueueState

PRIORITY = 100
"""That of a run for which none was given. DBOS hands the smaller ones out first, among the runs of one workflow."""

POLL_SECONDS = 0.1
"""Between two looks of a worker into one of DBOS's queues."""

KEPT = timedelta(days=1)
"""How long DBOS keeps what it has of a run that came to its end: the ledger has all of it, for good."""

FAULTS = (dbos_error.DBOSException, dbos_error.DBOSBaseException, SQLAlchemyError)


class SharedQueue:
    """Close it at the end. The tables of DBOS are made, or brought up to date, when they are first needed."""

    def __init__(self, location: Location, requests: RunQueue) -> None:
        refuse_pickle()
        self.requests = requests
        self._label = f"{location.label} (tables of DBOS)"
        self._database = database_of(location)
        self._client = DBOSClient(
            system_database_engine=self._database,
            dbos_system_schema=SCHEMA,
            serializer=References(),
            application_name=APPLICATION,
            lazy=True,
            retry_connection_errors=False,
        )
        self._preparing = threading.Lock()
        self._prepared = False
        self._lanes: set[Limits] = set()

    def close(self) -> None:
        """Close all connections. May be called twice."""
        self._client.destroy()
        self._database.dispose()

    def add(
        self,
        queued: QueuedRun,
        *,
        workflow: str,
        limits: Limits,
        priority: int = PRIORITY,
        delay: float = 0.0,
        alone: Collection[str] = (),
    ) -> bool:
        """Put a run in, with the text of its workflow; False if its id is known already. `delay` in seconds.

        Raises NotAlone if a run of the workflow with one of the triggers `alone` has not ended.
        """
        self._open_lane(limits)

        def enqueue(connection: Connection) -> None:
            self._enqueue(connection, queued, limits, priority, delay)

        with self._told():
            return self.requests.add(queued, workflow=workflow, along=enqueue, alone=alone)

    def enter(self, queued: QueuedRun, *, limits: Limits) -> None:
        """Put in what was asked of the queue before there was DBOS. Does nothing where it is there."""
        self._open_lane(limits)
        with self._writing() as connection:
            self._enqueue(connection, queued, limits, PRIORITY, 0.0)

    def remove(self, run_id: str) -> bool:
        """Take a run out that no worker has; False if there is none."""
        with self._writing() as connection:
            if not tables.take_out(connection, run_id):
                return False
        self.requests.remove([run_id])
        return True

    def hold(
        self, run_id: str, worker: str, *, limits: Limits | None, workflow: str, until: datetime | None = None
    ) -> bool:
        """Give a run back that this worker has, to be handed out again from `until` on; False where it has it no more.

        Without limits it stays within those that it has.
        """
        if limits is not None:
            self._open_lane(limits)
        lane = None if limits is None else limits.lane
        with self._writing() as connection:
            return tables.hold(connection, run_id, worker, lane=lane, workflow=workflow, until=until)

    def bury(self, run_id: str, worker: str) -> bool:
        """Say of a run that this worker has that nobody tries it any more; False where it has it no more."""
        with self._writing() as connection:
            return tables.bury(connection, run_id, worker)

    def wake(self, run_id: str) -> None:
        """Have a run handed out now that waits for its time, or for somebody to agree."""
        with self._told():
            self._client.set_workflow_delay(run_id, delay_seconds=0.0)

    def enqueue_due(self) -> None:
        """Have what waited for its time wait for a worker, when that has come.

        DBOS does so itself, but under an advisory lock, which every login of the server can hold for as long as it
        likes.
        """
        with self._told():
            self._client._sys_db.transition_delayed_workflows()

    def put_back(self, run: Claimed) -> bool:
        """DBOS's own recovery of one run, which its dead worker had: it waits again, before those that came later.

        To be called when nothing of that worker is open any more. False where somebody else has done so.
        """
        with self._told():
            return bool(self._client._sys_db.reenqueue_for_recovery(run.run_id, [run.worker], run.lane))

    def drop(self, claimed: Claimed) -> bool:
        """Cancel in DBOS what a worker has and what is no run; False where it has it no more."""
        with self._writing() as connection:
            return tables.drop(connection, claimed.run_id, claimed.worker)

    def claimed(self) -> Sequence[Claimed]:
        """What workers have, dead ones and what is no run included."""
        with self._reading() as connection:
            return tables.claimed(connection)

    def standing(self, run_ids: Collection[str]) -> Sequence[Claimed]:
        """How these runs stand in DBOS."""
        with self._reading() as connection:
            return tables.of_runs(connection, run_ids) if run_ids else ()

    def list(
        self, states: Collection[QueueState], *, workflow: str | None = None, most: int = 200
    ) -> Sequence[InQueue]:
        """The runs in these states, those first that were put in first."""
        with self._reading() as connection:
            return tables.in_queue(connection, states, workflow, most)

    def counts(self) -> dict[QueueState, int]:
        """How many runs are in each state; those that wait for somebody to agree are among the delayed ones."""
        with self._reading() as connection:
            return tables.counts(connection)

    def waits_since(self) -> datetime | None:
        """When the run was put in that waits longest for a worker."""
        with self._reading() as connection:
            return tables.waits_since(connection)

    def not_entered(self) -> Sequence[QueuedRun]:
        """What was asked of the queue and is not in DBOS."""
        with self._reading() as connection:
            run_ids = tables.not_entered(connection)
        return [queued for run_id in run_ids if (queued := self.requests.get(run_id)) is not None]

    def cancelled(self) -> Sequence[str]:
        """The runs that were asked of the queue and that somebody has cancelled in DBOS."""
        with self._reading() as connection:
            return tables.cancelled(connection)

    def tidy(self, now: datetime) -> int:
        """Delete what DBOS has kept of runs for long enough, and what was asked of the queue and has ended."""
        while self.requests.clear():
            pass
        removed = 0
        while True:
            with self._reading() as connection:
                over = tables.ended_before(connection, now - KEPT)
            if not over:
                return removed
            with self._told():
                self._client.delete_workflows(list(over))
            removed += len(over)

    def prepare(self) -> None:
        """Make the tables of DBOS, or bring them up to date, and close them to what would be run as code."""
        with self._preparing, self._told():
            if not self._prepared:
                self._client._sys_db.run_migrations()
                self._client._sys_db.create_application_version(FORMAT)
                constrain(self._database, SCHEMA)
                self._register(Limits())  # that other programs put runs into
                self._prepared = True

    def _open_lane(self, limits: Limits) -> None:
        """Have the DBOS queue with these limits, which workers look into within about a second."""
        self.prepare()
        if limits not in self._lanes:
            with self._told():
                self._register(limits)

    def _register(self, limits: Limits) -> None:
        rate: Any = None if limits.begun is None else {"limit": limits.begun, "period": float(limits.seconds)}
        self._client.register_queue(
            limits.lane,
            worker_concurrency=MOST,
            partition_concurrency=limits.most,
            partition_worker_concurrency=limits.in_one_worker,
            partition_limiter=rate,
            polling_interval_sec=POLL_SECONDS,
        )
        self._lanes.add(limits)

    def _enqueue(self, connection: Connection, queued: QueuedRun, limits: Limits, priority: int, delay: float) -> None:
        options: Any = {
            "workflow_name": WORKFLOW,
            "workflow_id": queued.run_id,
            "queue_name": limits.lane,
            "queue_partition_key": queued.workflow,
            "app_version": FORMAT,
            "priority": priority,
            **({"delay_seconds": delay} if delay else {}),
        }
        self._client.enqueue_in_transaction(connection, options)

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        self.prepare()
        with self._told(), self._database.connect() as connection:
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        self.prepare()
        with self._told(), self._database.begin() as connection:
            yield connection

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except FAULTS as error:
            raise fault(error, self._label) from error


def fault(error: BaseException, label: str) -> LedgerError:
    """The error to raise for one of DBOS or of its database, of which DBOS makes some no Exceptions."""
    return ledger_error(error if isinstance(error, Exception) else RuntimeError(type(error).__name__), label)


def database_of(location: Location) -> Engine:
    """The ledger's database for DBOS, which repeats for ever what its own way to connect says has failed."""
    database = connect(location)
    event.listen(database, "do_connect", _refusing(location.label))
    return database


def _refusing(label: str) -> Any:
    def do_connect(dialect: Any, record: Any, arguments: Any, parameters: Any) -> Any:
        try:
            return dialect.connect(*arguments, **parameters)
        except OperationalError as error:
            raise ledger_error(error, label) from error

    return do_connect
