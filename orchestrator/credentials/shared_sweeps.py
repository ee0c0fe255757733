"""One sweep for all that ask for one at the same time: what comes while a database is asked, is asked together next.

A run that ends asks its databases whether its logins are gone, with a login of its own. Many that end at the same time
(the calls of agents) would need as many. So only one asks a database at a time, and its login is on record in its run;
what others are to be told meanwhile is in the next question, which one of them asks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from orchestrator.credentials.types import Attempt, Duties, LeasesOfRun, LoginLeft, SweptLogins
from orchestrator.errors import OrchestratorError
from orchestrator.ledger.ids import carries


@dataclass(slots=True)
class _Question:
    """What is asked of a database next, by whoever was first to want it."""

    step_keys: set[str] = field(default_factory=set)
    answer: asyncio.Future[SweptLogins] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


@dataclass(slots=True)
class _Database:
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    next: _Question | None = None


@dataclass(slots=True)
class SharedSweeps:
    """The duties of a process, with sweeps that are shared. Belongs to one event loop."""

    duties: Duties
    _databases: dict[str, _Database] = field(default_factory=dict)

    async def sweep(
        self, attempt: Attempt, connection: str, step_keys: Collection[str], *, deadline: float
    ) -> SweptLogins:
        """As the duties' own. Of another's question that failed nothing is believed: then this asks itself."""
        database = self._databases.setdefault(connection, _Database())
        if database.next is not None:
            question = database.next
            question.step_keys.update(step_keys)
            try:
                async with asyncio.timeout_at(deadline):
                    answer = await asyncio.shield(question.answer)
            except (OrchestratorError, TimeoutError):
                return await self.duties.sweep(attempt, connection, step_keys, deadline=deadline)
            return _of(answer, step_keys)
        question = database.next = _Question(set(step_keys))
        question.answer.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            async with database.turn:
                database.next = None  # what comes from here on is asked next
                answer = await self.duties.sweep(attempt, connection, question.step_keys, deadline=deadline)
        except BaseException as error:
            if database.next is question:
                database.next = None
            known = error if isinstance(error, OrchestratorError) else TimeoutError()
            question.answer.set_exception(known)
            raise
        question.answer.set_result(answer)
        return _of(answer, step_keys)

    async def sweep_expired(self, attempt: Attempt, connection: str, *, deadline: float) -> SweptLogins:
        """As the duties' own."""
        return await self.duties.sweep_expired(attempt, connection, deadline=deadline)

    async def bind(
        self, attempt: Attempt, connection: str, login: str, values: Sequence[str], *, deadline: float, run: LeasesOfRun
    ) -> None:
        """As the duties' own."""
        await self.duties.bind(attempt, connection, login, values, deadline=deadline, run=run)


def _of(answer: SweptLogins, step_keys: Collection[str]) -> SweptLogins:
    """The part of an answer that is about these step keys."""

    def ours(login: str) -> bool:
        return any(carries(login, key) for key in step_keys)

    left: tuple[LoginLeft, ...] = tuple(each for each in answer.left if ours(each.login))
    return SweptLogins(dropped=tuple(login for login in answer.dropped if ours(login)), left=left)
