"""Logins that nobody's lease covers any more: looked for in every database, and dropped once they have expired.

Vault can create a login and lose its lease. Where the ledger knows the step key, the end of the step or
`leases sweep` finds it; the rest is found here, by `VALID UNTIL` alone. A login that was renewed has a later
one, so what a step still uses is never touched.

What is dropped is recorded where a reader would look for it. The step key in the login's name leads to the
lease, and so to the run: if that run is over, its chain says so, under a fence that was taken over. Otherwise
(no such key in this ledger, or a run that some process drives, whose chain is its own) it is recorded in the
run of the sweep itself, which is there anyway: looking takes a login, and no login is issued outside a run.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Coroutine, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from orchestrator.credentials.types import Attempt, LoginLeft
from orchestrator.errors import ExitCode, FenceLost, IllegalTransition, OrchestratorError
from orchestrator.ledger.events import (
    AttemptFinished,
    AttemptStarted,
    OrphansSwept,
    RunFinished,
    RunStarted,
    StepFinished,
)
from orchestrator.ledger.ids import new_step_key, step_key_of
from orchestrator.ledger.reading.queries import SWEEP_AGENT, SWEEP_WORKFLOW, TRIGGER_SWEEP
from orchestrator.ledger.states import RunState, StepState
from orchestrator.ledger.types import LeaseFilter
from orchestrator.recovery.fire_ids import Occasion
from orchestrator.runs.types import Services

log = logging.getLogger(__name__)

_SECONDS = 60
"""How long one database may take."""


@dataclass(frozen=True, slots=True)
class ConnectionSwept:
    """What was found in one database. With an `error` it could not be looked at, or not to the end."""

    connection: str
    dropped: tuple[str, ...] = ()
    left: tuple[LoginLeft, ...] = ()
    error: str = ""

    @property
    def clean(self) -> bool:
        """Whether it is known that no expired login is left."""
        return not self.left and not self.error

    @property
    def reason(self) -> str:
        """Why it is not clean."""
        told = [f"{each.login} is left: {each.problem}" for each in self.left]
        return "; ".join([*told, self.error] if self.error else told)


def databases(endpoints: Mapping[str, str]) -> tuple[str, ...]:
    """The connections that are databases, sorted: an endpoint that is not an HTTP address."""
    return tuple(
        sorted(name for name, address in endpoints.items() if urlsplit(address).scheme not in ("http", "https"))
    )


def sweep_at(now: datetime, seconds: float) -> Occasion:
    """The sweep of this time: the same in every process, so that of several only one sweeps."""
    return Occasion(SWEEP_WORKFLOW, TRIGGER_SWEEP, datetime.fromtimestamp(now.timestamp() // seconds * seconds, UTC))


async def sweep_once(services: Services, occasion: Occasion) -> tuple[ConnectionSwept, ...] | None:
    """The sweep of a time, unless another process has begun it: then None. Raises LedgerError."""
    run_id: str | None = await asyncio.to_thread(occasion.run_id, services)
    while run_id is not None:
        if (swept := await sweep_orphans(services, run_id)) is not None:
            return swept
        run_id = await asyncio.to_thread(occasion.another_id, services, run_id)
    return None


async def sweep_orphans(services: Services, run_id: str) -> tuple[ConnectionSwept, ...] | None:
    """Sweep every database, each within its own time; None if another process has begun the run of this id.

    Raises LedgerError where it cannot be recorded.
    """
    connections = databases(services.endpoints)
    if not connections:
        return ()
    if not await asyncio.to_thread(services.heartbeat.begin, run_id, digest="", text=""):
        return None
    started = RunStarted(
        workflow=SWEEP_WORKFLOW, digest="", agent=SWEEP_AGENT, trigger=TRIGGER_SWEEP, inputs={}, steps=connections
    )
    fence = await services.ledger.begin_run(run_id, started)
    finished = RunFinished(
        state=RunState.CANCELLED, exit_code=int(ExitCode.INTERRUPTED), reason="the sweep was cut short"
    )
    try:
        found = await _all(_sweep(services, run_id, fence, name) for name in connections)
        unclean = "; ".join(f"{each.connection}: {each.reason}" for each in found if not each.clean)
        state, code = (RunState.FAILED, ExitCode.UNCONFIRMED) if unclean else (RunState.SUCCEEDED, ExitCode.DONE)
        finished = RunFinished(state=state, exit_code=int(code), reason=unclean)
    finally:
        await services.ledger.append(run_id, fence, [finished])
    return found


async def _all(work: Iterable[Coroutine[Any, Any, ConnectionSwept]]) -> tuple[ConnectionSwept, ...]:
    """Every result, in order. What one of them raises is raised when the others have given their logins back."""
    done = await asyncio.gather(*work, return_exceptions=True)
    found = []
    for each in done:
        if isinstance(each, BaseException):
            raise each
        found.append(each)
    return tuple(found)


async def _sweep(services: Services, run_id: str, fence: int, connection: str) -> ConnectionSwept:
    """One database, as a step of the sweep's run."""
    attempt = Attempt(
        run_id=run_id,
        fence=fence,
        workflow=SWEEP_WORKFLOW,
        step=connection,
        number=1,
        agent=SWEEP_AGENT,
        step_key=new_step_key(connection),
        scopes=(),
        policy="",
        deadline=services.clock.monotonic() + _SECONDS,
    )
    started = AttemptStarted(step=connection, attempt=1, step_key=attempt.step_key, action="(sweep)", timeout=_SECONDS)
    await services.ledger.append(run_id, fence, [started])
    swept = await _asked(services, attempt, connection)
    by_key: dict[str, list[str]] = defaultdict(list)
    for login in swept.dropped:
        by_key[step_key_of(login)].append(login)
    for key, logins in by_key.items():
        await _record(services, run_id, fence, OrphansSwept(step_key=key, connection=connection, roles=tuple(logins)))
    state = StepState.SUCCEEDED if swept.clean else StepState.FAILED
    await services.ledger.append(
        run_id,
        fence,
        [
            AttemptFinished(step=connection, attempt=1, state=state, reason=swept.reason),
            StepFinished(step=connection, state=state, reason=swept.reason),
        ],
    )
    return swept


async def _asked(services: Services, attempt: Attempt, connection: str) -> ConnectionSwept:
    duties = services.broker.duties
    assert duties is not None, "the services of a process always have them"
    try:
        expired = await duties.sweep_expired(attempt, connection, deadline=attempt.deadline)
    except OrchestratorError as error:
        return ConnectionSwept(connection, error=error.message)
    return ConnectionSwept(connection, expired.dropped, expired.left)


async def _record(services: Services, run_id: str, fence: int, event: OrphansSwept) -> None:
    own = await asyncio.to_thread(_ended_run, services, event.step_key)
    if own is not None:
        try:
            await services.ledger.append(own, await services.ledger.take_over(own, ended=True), [event])
            return
        except (FenceLost, IllegalTransition):
            log.info(
                "run %s is being closed elsewhere; its sweep is recorded in %s", own, run_id, extra={"run": run_id}
            )
    await services.ledger.append(run_id, fence, [event])


def _ended_run(services: Services, step_key: str) -> str | None:
    """The run of a step key, if this ledger has it and nobody drives it any more."""
    leases = services.reader.leases(LeaseFilter(step_key=step_key, limit=1))
    run = services.reader.run(leases[0].run_id) if leases else None
    return run.run_id if run is not None and run.state is not RunState.RUNNING else None
