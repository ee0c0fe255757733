"""One login for many sweeps: what a service asks its databases again and again, over a session that it keeps.

A run that ends asks its databases whether its logins are gone, with a login made for that. Where runs of one step end
many times a second (the calls of agents), making it would cost more than all the rest. So a service keeps the session:
in a run of its own, which is on record like any other sweep, for `KEPT_SECONDS` at most, and no longer than it is used.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from orchestrator.credentials.duties import DatabaseDuties, SweepSession
from orchestrator.credentials.types import Attempt, LeasesOfRun, LoginLeft, SweptLogins
from orchestrator.errors import ExitCode, OrchestratorError, Unreachable
from orchestrator.ledger.events import AttemptFinished, AttemptStarted, Event, RunFinished, RunStarted, StepFinished
from orchestrator.ledger.ids import carries, new_run_id, new_step_key
from orchestrator.ledger.reading.queries import SWEEP_AGENT, SWEEP_WORKFLOW, TRIGGER_SWEEP
from orchestrator.ledger.states import RunState, StepState
from orchestrator.ledger.types import LedgerWriter
from orchestrator.runs.heartbeat import Heartbeat
from orchestrator.uninterrupted import completed, to_the_end

log = logging.getLogger(__name__)

KEPT_SECONDS = 20.0
"""How long a session is kept at most."""

IDLE_SECONDS = 1.0
"""How long it is kept while nothing is asked."""

TOGETHER_SECONDS = 0.02
"""While much is asked, it is waited so long for what can be asked together."""


@asynccontextmanager
async def keeping(duties: DatabaseDuties, ledger: LedgerWriter, heartbeat: Heartbeat) -> AsyncIterator[KeptSweeps]:
    """The duties of a service, until the context is left."""
    kept = KeptSweeps(duties, ledger, heartbeat)
    try:
        yield kept
    finally:
        await to_the_end(kept.aclose())


@dataclass(slots=True)
class _Question:
    step_keys: Collection[str]
    answer: asyncio.Future[SweptLogins] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


@dataclass(slots=True)
class _Kept:
    """What is asked of one database."""

    waiting: list[_Question] = field(default_factory=list)
    more: asyncio.Event = field(default_factory=asyncio.Event)
    keeper: asyncio.Task[None] | None = None


@dataclass(slots=True)
class KeptSweeps:
    """The duties of a service. Belongs to one event loop; `aclose` it before the ledger."""

    duties: DatabaseDuties
    ledger: LedgerWriter
    heartbeat: Heartbeat
    _databases: dict[str, _Kept] = field(default_factory=dict)

    async def sweep(
        self, attempt: Attempt, connection: str, step_keys: Collection[str], *, deadline: float
    ) -> SweptLogins:
        """As the duties' own, over the kept session. Where that fails this asks by itself, with what time is left."""
        database = self._databases.setdefault(connection, _Kept())
        question = _Question(tuple(step_keys))
        question.answer.add_done_callback(lambda done: done.cancelled() or done.exception())
        database.waiting.append(question)
        database.more.set()
        if database.keeper is None or database.keeper.done():
            database.keeper = asyncio.create_task(self._keep(connection, database), name=f"sweeps of {connection}")
        half = (deadline + asyncio.get_running_loop().time()) / 2
        try:
            async with asyncio.timeout_at(half):
                return _of(await question.answer, step_keys)
        except (OrchestratorError, TimeoutError):
            if question in database.waiting:
                database.waiting.remove(question)
            return await self.duties.sweep(attempt, connection, step_keys, deadline=deadline)

    async def sweep_expired(self, attempt: Attempt, connection: str, *, deadline: float) -> SweptLogins:
        """As the duties' own."""
        return await self.duties.sweep_expired(attempt, connection, deadline=deadline)

    async def bind(
        self, attempt: Attempt, connection: str, login: str, values: Sequence[str], *, deadline: float, run: LeasesOfRun
    ) -> None:
        """As the duties' own."""
        await self.duties.bind(attempt, connection, login, values, deadline=deadline, run=run)

    async def aclose(self) -> None:
        """Give the sessions back, and wait until they are."""
        keepers = [each.keeper for each in self._databases.values() if each.keeper is not None]
        for each in self._databases.values():
            each.more.set()
        for keeper in keepers:
            keeper.cancel()
        if keepers:
            await asyncio.wait(keepers)

    async def _keep(self, connection: str, database: _Kept) -> None:
        """Answer what is asked until nothing is, or the session is old. What goes wrong is told to who asked."""
        try:
            async with (
                self._run(connection) as attempt,
                self.duties.sweeping(attempt, connection, deadline=attempt.deadline) as session,
            ):
                await self._answer(database, session, until=asyncio.get_running_loop().time() + KEPT_SECONDS)
        except OrchestratorError as error:
            log.info("sweeps of %s: %s", connection, error.message)
            _fail(database, error)
        except Exception as error:  # noqa: BLE001 -- who asked asks by itself then
            log.warning("sweeps of %s ended with %s", connection, type(error).__name__)
            _fail(database, Unreachable(f"unexpected {type(error).__name__}"))
        finally:
            if database.waiting:  # asked while the session was given back
                _fail(database, Unreachable("the session for sweeps is over"))

    @asynccontextmanager
    async def _run(self, connection: str) -> AsyncIterator[Attempt]:
        """A run of its own, whose one attempt is that of the session."""
        run_id, step_key = new_run_id(), new_step_key(connection)
        await asyncio.to_thread(lambda: self.heartbeat.begin(run_id, digest="", text=None))
        started = RunStarted(
            workflow=SWEEP_WORKFLOW, digest="", agent=SWEEP_AGENT, trigger=TRIGGER_SWEEP, inputs={}, steps=(connection,)
        )
        fence, cancelled = await completed(self.ledger.begin_run(run_id, started))
        attempt = Attempt(
            run_id=run_id,
            fence=fence,
            workflow=SWEEP_WORKFLOW,
            step=connection,
            number=1,
            agent=SWEEP_AGENT,
            step_key=step_key,
            scopes=(),
            policy="",
            deadline=asyncio.get_running_loop().time() + 2 * KEPT_SECONDS,
        )
        begun = AttemptStarted(
            step=connection, attempt=1, step_key=step_key, action="(sweep)", timeout=int(2 * KEPT_SECONDS)
        )
        state, reason = StepState.SUCCEEDED, ""
        try:
            await self.ledger.append(run_id, fence, [begun])
            if cancelled is not None:
                raise asyncio.CancelledError
            yield attempt
        except OrchestratorError as error:
            state, reason = StepState.FAILED, error.message
            raise
        finally:
            went_well = state is StepState.SUCCEEDED
            of_run = RunState.SUCCEEDED if went_well else RunState.FAILED
            code = ExitCode.DONE if went_well else ExitCode.STEP_FAILED
            end: list[Event] = [
                AttemptFinished(step=connection, attempt=1, state=state, reason=reason),
                StepFinished(step=connection, state=state, reason=reason),
                RunFinished(state=of_run, exit_code=int(code), reason=reason),
            ]
            await to_the_end(self.ledger.append(run_id, fence, end))

    async def _answer(self, database: _Kept, session: SweepSession, *, until: float) -> None:
        loop = asyncio.get_running_loop()
        answered = 0.0
        while loop.time() < until - IDLE_SECONDS:
            if not database.waiting:
                database.more.clear()
                try:
                    async with asyncio.timeout(IDLE_SECONDS):
                        await database.more.wait()
                except TimeoutError:
                    return
            if loop.time() - answered < 2 * TOGETHER_SECONDS:
                await asyncio.sleep(TOGETHER_SECONDS)
            asked, database.waiting = database.waiting, []
            keys = {key for question in asked for key in question.step_keys}
            try:
                swept = await session.sweep(keys)
            except BaseException as error:
                for question in asked:
                    if not question.answer.done():
                        known = error if isinstance(error, OrchestratorError) else Unreachable(type(error).__name__)
                        question.answer.set_exception(known)
                raise
            answered = loop.time()
            for question in asked:
                if not question.answer.done():
                    question.answer.set_result(swept)


def _fail(database: _Kept, error: OrchestratorError) -> None:
    asked, database.waiting = database.waiting, []
    for question in asked:
        if not question.answer.done():
            question.answer.set_exception(error)


def _of(answer: SweptLogins, step_keys: Collection[str]) -> SweptLogins:
    """The part of an answer that is about these step keys."""

    def ours(login: str) -> bool:
        return any(carries(login, key) for key in step_keys)

    left: tuple[LoginLeft, ...] = tuple(each for each in answer.left if ours(each.login))
    witnesses = {key: witness for key, witness in answer.witnesses.items() if key in step_keys}
    return SweptLogins(tuple(login for login in answer.dropped if ours(login)), left, apart=True, witnesses=witnesses)
