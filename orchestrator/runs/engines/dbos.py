"""Runs inside DBOS Transact: a run under one fence is a DBOS workflow, each of its steps a DBOS step.

The ledger stays the only truth. DBOS is not asked what is over, and its own recovery carries nothing out:
it would hand a workflow to any living process, while only the one that took the fence may write or issue.
So a run that was taken over goes on as a new DBOS workflow, with its finished steps from the ledger, and the
one of the old fence is cancelled. What DBOS adds is its record of every run and step beside those of one's
other applications, and a place to cancel a run from.

The queue stays ours too. A run names several connections and wants a slot of each, and one of its workflow;
a DBOS queue has one concurrency (two, counting a partition key), so it cannot express that.

One process has one DBOS. It is launched by the first run, and imported only by those who chose this engine.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NoReturn

from dbos import DBOS, Serializer, SetWorkflowID, StepReservation, WorkflowStatusString
from dbos import error as dbos_error
from psycopg import OperationalError
from sqlalchemy import Engine, event
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.errors import FenceLost, LedgerError
from orchestrator.ledger.faults import ledger_error
from orchestrator.ledger.location import Location
from orchestrator.ledger.states import RunState, StepState
from orchestrator.ledger.storage.connect import connect
from orchestrator.ledger.types import LedgerReader
from orchestrator.ledger.writing.transaction import FIRST_FENCE
from orchestrator.runs.engines.dbos_rows import OURS, constrain, refuse_pickle
from orchestrator.runs.engines.references import UnknownError, decode, encode
from orchestrator.runs.engines.types import Walk
from orchestrator.version import __version__

log = logging.getLogger(__name__)

SCHEMA = "orchestrator_dbos"
"""Where DBOS's tables are, in the ledger's database."""

WORKFLOW = "orchestrator.run"
APPLICATION_VERSION = f"orchestrator-{__version__}"

_RECORD_SECONDS = 10.0
"""How long DBOS may take to record the end of a walk that is over."""

_LIVING = [WorkflowStatusString.PENDING.value, WorkflowStatusString.ENQUEUED.value, WorkflowStatusString.DELAYED.value]
_FAULTS = (dbos_error.DBOSException, dbos_error.DBOSBaseException, SQLAlchemyError, LedgerError, UnknownError)


class _References(Serializer):
    """Instead of pickle: stores references only."""

    def name(self) -> str:
        return OURS

    def serialize(self, data: Any) -> str:
        return encode(data)

    def deserialize(cls, serialized_data: str) -> Any:  # noqa: N805 -- as the class above names it
        return decode(serialized_data)


@dataclass(slots=True)
class _Driven:
    """A walk on its way through DBOS, and what came of it whatever DBOS makes of that."""

    walk: Walk
    limit: asyncio.Timeout
    begun: bool = False
    ended: dict[str, StepState] | None = None
    error: BaseException | None = None
    _reserved: dict[str, StepReservation] = field(default_factory=dict)

    async def go(self) -> dict[str, StepState]:
        self.begun = True
        # Numbers are given in the order of the declaration, whatever order the steps start in.
        walk = self.walk
        self._reserved = {step: DBOS.reserve_step() for step in walk.graph.dependencies if step not in walk.already}
        try:
            self.ended = await walk.go(self._call)
        except BaseException as error:
            self.error = error
            raise
        finally:
            self.limit.reschedule(asyncio.get_running_loop().time() + _RECORD_SECONDS)
        return self.ended

    async def _call(self, step: str) -> StepState:
        begun = False
        state: StepState | None = None

        async def attempts() -> StepState:
            nonlocal begun, state
            begun = True
            state = await self.walk.call(step)
            return state

        try:
            # A cancellation in DBOS cancels the task, so that the step gives its credentials back.
            await self._reserved[step].run_async({"name": step, "preemptible": True}, attempts)
        except asyncio.CancelledError:
            if state is None:
                await self._never_begun(step, begun=begun)
                raise
        except dbos_error.DBOSWorkflowCancelledError:
            self.walk.cancel("it was cancelled in DBOS")
            await self._never_begun(step, begun=begun)
            raise asyncio.CancelledError from None
        except _FAULTS as error:
            if state is None:
                _end(self.walk.run_id, error)
            log.warning("DBOS did not record step %s of run %s: %s", step, self.walk.run_id, type(error).__name__)
        assert state is not None
        return state

    async def _never_begun(self, step: str, *, begun: bool) -> None:
        if not begun:
            await self.walk.skip(step, StepState.CANCELLED, "the run was cancelled")


_driven: ContextVar[_Driven | None] = ContextVar("driven", default=None)
"""What this task is about to have DBOS drive. A workflow that DBOS starts by itself finds nothing here."""


@DBOS.workflow(name=WORKFLOW)
async def _run(run_id: str, fence: int) -> dict[str, StepState]:
    """Go on with what the runner of this process has given to DBOS, under the fence that it took in the ledger.

    An entry that somebody has written into DBOS's tables starts this too, with any arguments: it does nothing.
    """
    driven = _driven.get()
    if driven is None or (driven.walk.run_id, driven.walk.fence) != (run_id, fence):
        log.warning(
            "DBOS has started the workflow %.100r, which was not begun here: nothing was carried out; if nobody of "
            "yours has resumed, forked or enqueued it there, find out who can write into the schema %s",
            *(DBOS.workflow_id, SCHEMA),
        )
        raise FenceLost("a run is gone on with by whoever takes its fence, and not by DBOS")
    return await driven.go()


class DbosEngine:
    """Drives the runs of one process inside DBOS, as the executor `runner_id`. Close it at the end."""

    def __init__(self, location: Location, *, reader: LedgerReader, runner_id: str) -> None:
        self._location = location
        self._reader = reader
        self._runner_id = runner_id
        self._launching: asyncio.Future[Engine] | None = None

    async def drive(self, walk: Walk) -> dict[str, StepState]:
        """Walk to the end inside a DBOS workflow. Raises CancelledError and LedgerError."""
        driven = _Driven(walk, asyncio.timeout(None))
        try:
            await self._launched()
            return await self._drive(driven)
        except BaseException:
            if not driven.begun:
                await walk.abandon()
            raise

    async def _drive(self, driven: _Driven) -> dict[str, StepState]:
        run_id, fence = driven.walk.run_id, driven.walk.fence
        fault: BaseException | None = None
        token = _driven.set(driven)
        try:
            async with driven.limit:
                with SetWorkflowID(workflow_id(run_id, fence), workflow_id_reuse_policy="reject"):
                    await _run(run_id, fence)
        except asyncio.CancelledError:
            if driven.ended is None:
                await self._cancel(workflow_id(run_id, fence))
                raise
        except (*_FAULTS, TimeoutError) as error:
            fault = error
        finally:
            _driven.reset(token)
        if driven.error is not None:
            raise driven.error
        if driven.ended is None:
            _end(run_id, fault)
        if fault is not None:
            log.warning("DBOS did not record the end of run %s: %s", run_id, type(fault).__name__)
        return driven.ended

    async def settle(self) -> None:
        """Cancel the DBOS workflows whose run has ended, or goes on under another fence."""
        try:
            await self._launched()
            # By the id alone: what else is in the tables may be anybody's.
            for status in await DBOS.list_workflows_async(status=_LIVING, load_input=False, load_output=False):
                if not await asyncio.to_thread(self._goes_on, status.workflow_id):
                    await DBOS.cancel_workflow_async(status.workflow_id)
        except _FAULTS as error:
            log.warning("what DBOS has of ended runs could not be brought up to date: %s", type(error).__name__)

    def _goes_on(self, workflow: str) -> bool:
        """Whether this is what DBOS has of a run that is running, under the fence that is valid now."""
        runs = (self._reader.run(run_id) for run_id in (workflow, workflow.rpartition("#")[0]))
        living = (run for run in runs if run is not None and run.state is RunState.RUNNING)
        return any(workflow_id(run.run_id, run.fence) == workflow for run in living)

    async def aclose(self) -> None:
        """End DBOS in this process."""
        if self._launching is None:
            return
        [launched] = await asyncio.gather(self._launching, return_exceptions=True)
        # DBOS has put its own pool of threads in the place of the loop's, and is about to end it.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor())
        if isinstance(launched, Engine):
            await asyncio.to_thread(_destroy, launched)

    async def _cancel(self, workflow: str) -> None:
        """As far as it can be done: `settle` does it later where it cannot."""
        try:
            await DBOS.cancel_workflow_async(workflow)
        except _FAULTS as error:
            log.warning("DBOS did not record the end of %s: %s", workflow, type(error).__name__)

    async def _launched(self) -> None:
        """Launch DBOS once, however many runs want it. Raises LedgerError; the next run then tries again."""
        if self._launching is None or _failed(self._launching):
            self._launching = asyncio.ensure_future(asyncio.to_thread(self._launch))
        await asyncio.shield(self._launching)

    def _launch(self) -> Engine:
        _silence()
        refuse_pickle()
        database = connect(self._location)
        event.listen(database, "do_connect", _refusing(self._location.label))
        DBOS(
            config={
                "name": "orchestrator",
                "application_version": APPLICATION_VERSION,
                "executor_id": self._runner_id,
                "system_database_engine": database,
                "dbos_system_schema": SCHEMA,
                "serializer": _References(),
                "use_listen_notify": False,  # nothing of ours waits for messages
                "log_level": "DEBUG" if log.isEnabledFor(logging.DEBUG) else "CRITICAL",  # faults are told by us
            }
        )
        if DBOS.executor_id != self._runner_id:
            database.dispose()
            raise LedgerError("this process runs a DBOS application already", hint="use the engine `local` in it")
        try:
            DBOS.launch()
            constrain(database, SCHEMA)
        except (dbos_error.DBOSException, SQLAlchemyError, LedgerError) as error:
            _destroy(database)
            raise ledger_error(error, f"{self._location.label} (tables of DBOS)") from error
        return database


def _failed(launching: asyncio.Future[Engine]) -> bool:
    return launching.done() and launching.exception() is not None


def _destroy(database: Engine) -> None:
    DBOS.destroy()
    database.dispose()


def workflow_id(run_id: str, fence: int) -> str:
    """The run's own id, with the fence behind it once the run was taken over."""
    return run_id if fence == FIRST_FENCE else f"{run_id}#{fence}"


def _end(run_id: str, fault: BaseException | None) -> NoReturn:
    """End a run that DBOS does not let go on. Raises LedgerError."""
    if isinstance(fault, LedgerError):
        raise fault
    kind = type(fault).__name__ if fault is not None else "it answered without carrying it out"
    raise LedgerError(
        f"DBOS does not go on with run {run_id}: {kind}",
        hint=f"see the workflow in the schema {SCHEMA} of the ledger's database, or use the engine `local`",
    ) from fault


def _refusing(label: str) -> Any:
    """A way to connect whose failure DBOS does not repeat for ever: a run must end when its database is away."""

    def do_connect(dialect: Any, record: Any, arguments: Any, parameters: Any) -> Any:
        try:
            return dialect.connect(*arguments, **parameters)
        except OperationalError as error:
            raise ledger_error(error, label) from error

    return do_connect


def _silence() -> None:
    """Keep DBOS from writing to standard error by itself: what it says goes where our records go, redacted."""
    logger = logging.getLogger("dbos")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
