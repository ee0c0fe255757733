"""What the steps of one run have given back, and what of it is not over when they are.

A step waits until Vault has answered that its leases are revoked. Two things are left to the run: the end of the
step's own Vault token, which no step has ever seen, is brought about beside the next step; and the databases are
asked, once for all steps, whether the logins are really gone. The run is not over before both are.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import Any

from orchestrator.credentials.closing import ask_databases
from orchestrator.credentials.parts import BrokerParts
from orchestrator.credentials.types import Asked, Attempt, Suspect
from orchestrator.credentials.witnesses.dead_login import DeadLogin, DeadLogins, Outcome
from orchestrator.errors import LedgerError, OrchestratorError
from orchestrator.ledger.events import WHOLE_RUN, LeaseRevocationFailed
from orchestrator.ledger.journal import Journal

log = logging.getLogger(__name__)

CONFIRM_SECONDS = 60.0
"""In a run that goes on a database is asked at the latest so long after Vault has taken a login of it back."""


class RunLeases:
    """The leases of one run under one fence. Belongs to one event loop; `settle` it before the run is over."""

    def __init__(self, broker: BrokerParts, journal: Journal) -> None:
        self.journal = journal
        self._broker = broker
        self._suspects: list[Suspect] = []
        self._attempt: Attempt | None = None
        self._background: set[asyncio.Task[None]] = set()
        self._tries: dict[str, asyncio.Task[None]] = {}
        """By lease id."""
        self._failed: OrchestratorError | None = None
        self._timer: asyncio.TimerHandle | None = None

    def in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Have something done that no step waits for. `settle` does, and raises what it raised."""
        self._begin(work)

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._done)
        return task

    def try_login(self, dead: DeadLogin, *, deadline: float) -> None:
        """Have a login that Vault says is revoked tried once. What comes of it is on record before its lease's end."""
        if (logins := self._broker.dead_logins) is not None:
            trying = self._begin(self._try_login(logins, dead, deadline))
            self._tries[dead.lease_id] = trying
            trying.add_done_callback(lambda done: self._tries.pop(dead.lease_id, None))

    async def _try_login(self, logins: DeadLogins, dead: DeadLogin, deadline: float) -> None:
        try:
            tried = await logins.tried(dead, deadline=deadline)
        except asyncio.CancelledError:
            self.journal.defer(logins.event(dead, Outcome(None, reason="cancelled")))
            raise
        self.journal.defer(tried)

    def given_back(self, attempt: Attempt, suspects: Sequence[Suspect]) -> None:
        """Remember logins whose database is to be asked, at the latest in `CONFIRM_SECONDS`."""
        self._suspects += suspects
        self._attempt = replace(attempt, step=WHOLE_RUN, number=1, scopes=())
        if suspects and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(CONFIRM_SECONDS, self._confirm_soon)

    async def asked(self, suspects: Sequence[Suspect], attempt: Attempt, *, deadline: float) -> Asked:
        """Ask the databases. The logins that look have journals of their own: what is left of one is not known here."""
        if trying := [task for each in suspects if (task := self._tries.get(each.handle.lease_id))]:
            await asyncio.wait(trying)
        found = await ask_databases(suspects, attempt, self._broker.duties, deadline=deadline)
        self.journal.in_doubt |= not found.apart
        return found

    async def settle(self) -> None:
        """Do what `confirm` does, and have all of it on record. Raises LedgerError."""
        try:
            await self.confirm()
        finally:
            await self.journal.flush()

    async def confirm(self) -> None:
        """Wait for the ends of the step tokens, and ask the databases; what they say goes along with what comes next.

        What cannot be confirmed within the broker's grace stays `revoking`. Raises LedgerError.
        """
        if self._timer is not None:
            self._timer.cancel()
        while self._background:
            await asyncio.wait(self._background)
        await self._confirm(last=True)
        failed, self._failed = self._failed, None
        if failed is not None:
            raise failed

    def _confirm_soon(self) -> None:
        self._timer = None
        self.in_background(self._confirm(last=False))

    async def _confirm(self, *, last: bool) -> None:
        suspects, self._suspects = self._suspects, []
        if not suspects:
            return
        assert self._attempt is not None, "it is set with the first suspect"
        broker = self._broker
        deadline = broker.clock.monotonic() + broker.grace
        attempt = replace(self._attempt, deadline=deadline)
        asked = await self.asked(suspects, attempt, deadline=deadline)
        unasked = [suspect for suspect in suspects if suspect.handle.connection in asked.silent]
        if not last:
            self.given_back(self._attempt, unasked)
            unasked = []
        failures = [
            LeaseRevocationFailed(lease_id=suspect.handle.lease_id, error=_not_asked(suspect, asked.silent))
            for suspect in unasked
        ]
        self.journal.defer(*asked.told, *failures)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, OrchestratorError):
            self._failed = error
        elif error is not None:
            log.error("what was left to the end of a run failed: %s", type(error).__name__)
            self._failed = LedgerError(f"a lease could not be closed: {type(error).__name__}")


def _not_asked(suspect: Suspect, silent: dict[str, OrchestratorError]) -> str:
    connection = suspect.handle.connection or ""
    vault = "Vault has revoked it, but " if suspect.vault_agrees else ""
    return f"{vault}the database `{connection}` could not be asked: {silent[connection].message}"
