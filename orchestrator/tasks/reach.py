"""How runs that other processes carry out are reached: by the ledger, with or without services of one's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orchestrator.clock import Clock
from orchestrator.errors import FenceLost
from orchestrator.ledger.coordination.approvals import ApprovalStore
from orchestrator.ledger.coordination.runners import RunnerStore
from orchestrator.ledger.states import RunState
from orchestrator.ledger.types import LedgerReader, LedgerWriter, RunRecord
from orchestrator.ledger.writing.store import Ledger
from orchestrator.recovery.waiting import cancel_waiting
from orchestrator.runs.types import Services

LOOK_SECONDS = 0.05
"""Between two looks at whether runs have ended."""

Tell = Callable[[str, str], bool]
"""Tell a run of this process to end, with the reason; False where it is none."""


def _nobody(run_id: str, reason: str) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Reach:
    """The ledger, and the quicker way to what this process carries out itself."""

    writer: LedgerWriter
    reader: LedgerReader
    runners: RunnerStore
    approvals: ApprovalStore
    clock: Clock
    tell_here: Tell = _nobody

    @classmethod
    def of_services(cls, services: Services) -> Reach:
        """From a process that carries out runs."""
        heartbeat, approvals = services.heartbeat, services.approvals.store
        return cls(services.ledger, services.reader, heartbeat.store, approvals, services.clock, heartbeat.tell)

    @classmethod
    def of_ledger(cls, ledger: Ledger, clock: Clock) -> Reach:
        """From a command."""
        return cls(ledger, ledger, ledger.runners, ledger.approvals, clock)

    async def tell(self, run_id: str, reason: str) -> None:
        """Ask whoever drives a run to end it."""
        if not self.tell_here(run_id, reason):
            await asyncio.to_thread(self.runners.request_cancel, run_id, reason)

    async def end(self, runs: Sequence[RunRecord], reason: str) -> None:
        """Tell runs to end, or end those that wait: nobody carries them out."""
        for each in runs:
            if each.state is not RunState.WAITING:
                await self.tell(each.run_id, reason)
                continue
            now = self.clock.now()
            try:
                await cancel_waiting(self.writer, self.reader, self.approvals, each.run_id, reason, now=now)
            except FenceLost:  # it goes on by now
                await self.tell(each.run_id, reason)

    async def until_ended(self, runs: Sequence[str], *, seconds: float) -> bool:
        """Wait until none of these goes on; False if that takes longer."""
        until = self.clock.monotonic() + seconds
        left = list(runs)
        while left:
            records = [await asyncio.to_thread(self.reader.run, each) for each in left]
            left = [each.run_id for each in records if each is not None and each.state is RunState.RUNNING]
            if left and self.clock.monotonic() >= until:
                return False
            if left:
                await asyncio.sleep(LOOK_SECONDS)
        return True
