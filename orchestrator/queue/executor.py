"""A worker as an executor of DBOS: it takes runs out of the queue as it has room, and hands them to us.

What is over, who drives a run and what was issued for it is in the ledger alone. DBOS says which run is next, and keeps
who has it. So there is one DBOS workflow, whose only argument is which run it is, and none of a run's steps is one of
DBOS's. A run that cannot go on now (somebody has to agree first, or it cannot be begun here) is given back, under the
same id, and its place is free.

One process has one DBOS.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from dbos import DBOS
from dbos._core import ActiveWorkflowById
from sqlalchemy import Engine

from orchestrator.errors import LedgerError
from orchestrator.jsontypes import JsonObject
from orchestrator.ledger.location import Location
from orchestrator.queue.lanes import MOST, limits_by
from orchestrator.queue.names import APPLICATION, FORMAT, SCHEMA, WORKFLOW
from orchestrator.queue.references import References
from orchestrator.queue.rows import constrain, refuse_pickle
from orchestrator.queue.shared import FAULTS, database_of, fault

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What another program asked for that has entered a run by itself. Nothing where we have entered it."""

    workflow: str
    inputs: JsonObject
    reason: str


Carry = Callable[[str, Asked], Awaitable[str]]
"""Carries a run as far as it goes now, and answers how it has ended. Raises GivenBack where it has not."""


class GivenBack(asyncio.CancelledError):
    """The run was given back to the queue: DBOS has nothing to record of it. No Exception, which DBOS would record."""


class Room:
    """How much more a worker can take. Asked from DBOS's threads."""

    def left(self) -> int:
        """How many more runs may begin; 0 where there is no room."""
        raise NotImplementedError

    def is_closed(self, workflow: str) -> bool:
        """Whether no run of this workflow may begin here now, whatever room there is."""
        raise NotImplementedError


class _Load(ActiveWorkflowById):
    """What DBOS asks for how many runs go on here. It compares that with a number that is the same for all workers.

    So it is told that number less the room that there really is, over all of its queues together.
    """

    def __init__(self, room: Room) -> None:
        super().__init__()
        self._room = room

    def count_for_queue(self, queue_name: str) -> int:
        return MOST - max(0, self._room.left())

    def count_for_partition(self, queue_name: str, queue_partition_key: str | None) -> int:
        if queue_partition_key is None or not self._room.is_closed(queue_partition_key):
            return 0
        limits = limits_by(queue_name)
        return MOST if limits is None else limits.in_one_worker


class Executor:
    """DBOS in this process, as the executor `worker`. `carry` is called in the event loop that launches it."""

    def __init__(self, location: Location, *, worker: str, room: Room, carry: Carry) -> None:
        self._location = location
        self._worker = worker
        self._carry = carry
        self._load = _Load(room)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._database: Engine | None = None

    @property
    def active(self) -> frozenset[str]:
        """The runs that DBOS has given to this process and that are not given back, or recorded as over."""
        return frozenset(self._load.activeList())

    async def launch(self) -> None:
        """Begin to take runs out of the queue. Raises LedgerError."""
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._launch)

    async def aclose(self) -> None:
        """End DBOS in this process. What it has been given and has not recorded as over is for others to have."""
        if self._database is not None:
            await asyncio.to_thread(self._destroy)

    async def carry(self, run_id: str, asked: Asked) -> str:
        """Have our own event loop carry the run, from DBOS's. A cancellation here cancels it there."""
        assert self._loop is not None
        work = asyncio.run_coroutine_threadsafe(_carried(self._carry(run_id, asked)), self._loop)
        ended = await asyncio.wrap_future(work)
        if ended is None:
            raise GivenBack
        return ended

    def _launch(self) -> None:
        global _executor
        _silence()
        refuse_pickle()
        self._database = database_of(self._location)
        dbos = DBOS(
            config={
                "name": APPLICATION,
                "application_version": FORMAT,
                "executor_id": self._worker,
                "system_database_engine": self._database,
                "dbos_system_schema": SCHEMA,
                "serializer": References(),
                "use_listen_notify": False,  # nothing of ours waits for messages
                "log_level": "DEBUG" if log.isEnabledFor(logging.DEBUG) else "CRITICAL",  # faults are told by us
            }
        )
        if DBOS.executor_id != self._worker:
            self._database.dispose()
            self._database = None
            raise LedgerError("this process runs a DBOS application already", hint="start the worker on its own")
        dbos._active_workflows_set = self._load
        _executor = self
        try:
            DBOS.launch()
            constrain(self._database, SCHEMA)
        except (*FAULTS, LedgerError) as error:
            self._destroy()
            raise fault(error, f"{self._location.label} (tables of DBOS)") from error

    def _destroy(self) -> None:
        global _executor
        DBOS.destroy()
        _executor = None
        if self._database is not None:
            self._database.dispose()
            self._database = None


_executor: Executor | None = None


@DBOS.workflow(name=WORKFLOW, max_recovery_attempts=None)
async def _run(workflow: str = "", inputs: dict[str, Any] | None = None, reason: str = "") -> str:
    """Carry the run whose id this DBOS workflow has from wherever the ledger says that it is."""
    run_id = DBOS.workflow_id
    if _executor is None or run_id is None:
        raise GivenBack
    return await _executor.carry(run_id, Asked(workflow=workflow, inputs=inputs or {}, reason=reason))


async def _carried(work: Awaitable[str]) -> str | None:
    """How it has ended, and None where it was given back: a future of another loop cannot say it by a cancellation."""
    try:
        return await work
    except GivenBack:
        return None


def _silence() -> None:
    """Keep DBOS from writing to standard error by itself: what it says goes where our records go, redacted."""
    logger = logging.getLogger("dbos")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
