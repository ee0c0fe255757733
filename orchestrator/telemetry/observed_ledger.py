"""A ledger whose events somebody watches: each is passed on once it is durable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from orchestrator.clock import Clock
from orchestrator.ledger.events import Event, RunStarted
from orchestrator.ledger.types import LedgerWriter

Observer = Callable[[str, datetime, Event], None]
"""Called with the run id, the time and the event, in the order in which the ledger has them."""


def both(first: Observer, second: Observer | None) -> Observer:
    """An observer that tells both."""
    if second is None:
        return first

    def observer(run_id: str, time: datetime, event: Event) -> None:
        first(run_id, time, event)
        second(run_id, time, event)

    return observer


def only(run: str, observer: Observer) -> Observer:
    """An observer that tells of one run, and not of others that this process recovers beside it."""

    def observe(run_id: str, time: datetime, event: Event) -> None:
        if run_id == run:
            observer(run_id, time, event)

    return observe


@dataclass(frozen=True, slots=True)
class ObservedLedger:
    """Writes through to a ledger and tells an observer what was committed."""

    ledger: LedgerWriter
    observer: Observer
    clock: Clock

    async def begin_run(self, run_id: str, started: RunStarted) -> int:
        fence = await self.ledger.begin_run(run_id, started)
        self.observer(run_id, self.clock.now(), started)
        return fence

    async def take_over(self, run_id: str, *, ended: bool = False) -> int:
        return await self.ledger.take_over(run_id, ended=ended)

    async def append(self, run_id: str, fence: int, events: Sequence[Event]) -> None:
        await self.ledger.append(run_id, fence, events)
        now = self.clock.now()
        for event in events:
            self.observer(run_id, now, event)

    async def aclose(self) -> None:
        await self.ledger.aclose()
