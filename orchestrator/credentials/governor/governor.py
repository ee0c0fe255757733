"""The issuance governor of one process: it looks for all attempts of the process that wait whether it is their turn.

Who gets a place is decided by the ledger, in the transaction that records the intents; the rule is
`orchestrator.ledger.places.granted`. Here is what makes waiting cost little: one look for all who wait, which only
reads, and a try to write only for those whose turn it seems to be.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime

from orchestrator.clock import Clock
from orchestrator.credentials.governor.silence import Silence
from orchestrator.credentials.types import Attempt
from orchestrator.errors import LedgerError
from orchestrator.ledger.coordination.runners import RunnerStore
from orchestrator.ledger.events import Event, LeaseEvent, LeaseVaultRevoked
from orchestrator.ledger.lease import FINAL
from orchestrator.ledger.places import AttemptKey, Places, PlacesWanted

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.2
"""Between two looks, on average: so much later than it could, a place that another process gives back is taken."""

LEAST_SECONDS = 0.02
"""Between two looks at least, however many leases this process closes meanwhile."""

_SPREAD = 0.25
"""By which part of its length a pause is longer or shorter, so that processes do not look in step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coordination:
    """What the governor needs of the ledger, and of who this process is."""

    places: Callable[[datetime], Places]
    runners: RunnerStore
    runner_id: str
    enter: Callable[[], None]
    """Enters this process in the ledger, once: who is not entered is not counted."""
    certainly_gone: Callable[[str], bool] = lambda process: False
    dead_after: float = 15.0


@dataclass(slots=True)
class Turn:
    """Of one attempt that waits: set while it seems to be its turn."""

    seems: asyncio.Event = field(default_factory=asyncio.Event)

    async def come(self, stop: asyncio.Event, seconds: float) -> bool:
        """Wait for it. False where `stop` is set first, or it does not come within so many seconds."""
        waiting = [asyncio.ensure_future(event.wait()) for event in (self.seems, stop)]
        try:
            await asyncio.wait(waiting, timeout=max(0.0, seconds), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waiting:
                each.cancel()
        came = self.seems.is_set() and not stop.is_set()
        self.seems.clear()
        return came


class Governor:
    """Bounds open leases by connection, as `limits` says. Belongs to one event loop."""

    def __init__(
        self,
        limits: Mapping[str, int],
        coordination: Coordination,
        clock: Clock,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.limits = dict(limits)
        self._with = coordination
        self._clock = clock
        self._jitter = jitter
        self._turns: dict[AttemptKey, Turn] = {}
        self._wake = asyncio.Event()
        self._looker: asyncio.Task[None] | None = None
        self._silence = Silence(
            runner_id=coordination.runner_id,
            dead_after=coordination.dead_after,
            certainly_gone=coordination.certainly_gone,
        )

    def wanted(self, attempt: Attempt) -> PlacesWanted | None:
        """The places that an attempt needs; None where no limit concerns it. What looks after leases needs none."""
        named = (scope.connection for scope in attempt.scopes if not scope.name.startswith("("))
        leases = Counter(name for name in named if name is not None and name in self.limits)
        if not leases:
            return None
        limits = {name: self.limits[name] for name in leases}
        return PlacesWanted(attempt.step, attempt.number, self._with.runner_id, dict(leases), limits)

    async def enter(self) -> None:
        """Have this process in the ledger before anything of it waits. Raises LedgerError."""
        await asyncio.to_thread(self._with.enter)

    @contextmanager
    def waiting(self, key: AttemptKey) -> Iterator[Turn]:
        """An attempt of this process is in line; inside, it is told when its turn seems to have come."""
        turn = self._turns[key] = Turn()
        if self._looker is None or self._looker.done():
            self._looker = asyncio.get_running_loop().create_task(self._look_again(), name="issuance governor")
        try:
            yield turn
        finally:
            del self._turns[key]
            if not self._turns:
                self._wake.set()

    def recorded(self, run_id: str, time: datetime, event: Event) -> None:
        """Something is on record: where this process gave a lease back, its place is free at once."""
        given_back = isinstance(event, LeaseVaultRevoked) or (isinstance(event, LeaseEvent) and event.to in FINAL)
        if self._turns and given_back:
            self._wake.set()

    async def _look_again(self) -> None:
        """Until nobody waits. What goes wrong is tried again: who waits is told by its own deadline."""
        while self._turns:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS * (1 - _SPREAD + 2 * _SPREAD * self._jitter())):
                    await self._wake.wait()
            self._wake.clear()
            if not self._turns:
                break
            try:
                await self._look()
            except LedgerError as error:
                log.warning("who may have a lease now could not be looked at: %s", error.message)
            except Exception:
                log.exception("who may have a lease now could not be looked at")
            await asyncio.sleep(LEAST_SECONDS)

    async def _look(self) -> None:
        now = self._clock.now()
        places = await asyncio.to_thread(self._with.places, now)
        going, in_line = places.next(self.limits, now), {each.key for each in places.line}
        for key, turn in self._turns.items():
            if key in going or key not in in_line:  # taken out by somebody: it is told why when it tries to write
                turn.seems.set()
        for dead in self._silence.dead(places.line, self._clock.monotonic()):
            if await asyncio.to_thread(self._with.runners.declare_gone, dead):
                log.warning("the process %s waits for leases and is dead: nobody waits for it", dead.runner_id)
                self._wake.set()
