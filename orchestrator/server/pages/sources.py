"""What the pages are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from orchestrator.clock import Clock
from orchestrator.ledger.coordination.approvals import ApprovalStore
from orchestrator.ledger.coordination.runners import RunnerStore
from orchestrator.ledger.coordination.schedules import ScheduleStates
from orchestrator.ledger.log.reader import LogReader
from orchestrator.ledger.types import LedgerReader
from orchestrator.scheduling.overview import Scheduled
from orchestrator.server.pages.days import Days


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """The stores of one ledger, and the workflows that this process schedules. Asked from threads."""

    reader: LedgerReader
    log: LogReader
    """The signed log over all runs."""
    approvals: ApprovalStore
    runners: RunnerStore
    schedules: ScheduleStates
    clock: Clock
    workflows: Callable[[], Mapping[str, Scheduled]] = dict
    days: Days = field(default_factory=Days)
