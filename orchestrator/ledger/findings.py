"""What is found out about many rows at once: how long credentials were held, decisions, whether the tables are true."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.ledger.events import Decided


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposure:
    """Credentials that were issued, together: `seconds` is how long they were held, `longest` one of them.

    `open` are those that are not confirmed gone; their time is not in `seconds`.
    """

    workflow: str
    agent: str
    resource: str
    leases: int
    open: int
    seconds: float
    longest: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionFilter:
    """All given parts must match. Times bound the beginning of the runs: `since` is included, `until` is not."""

    run: str | None = None
    workflow: str | None = None
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class DecisionRecord:
    """A decision of a policy, with the run that it was about. `seq` is its place in the run's chain."""

    run_id: str
    workflow: str
    seq: int
    time: datetime
    decided: Decided


@dataclass(frozen=True, slots=True)
class Difference:
    """A row that is not what the events say. `columns` is empty where the row is missing, or should not be there."""

    table: str
    key: str
    """The id of the run or lease, or the name of the step."""
    what: str
    """`changed`, `missing`, `added`, or why the events say nothing."""
    columns: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.table} {self.key}: {self.what}" + (f": {', '.join(self.columns)}" if self.columns else "")


@dataclass(frozen=True, slots=True)
class Examined:
    """What was found of one run. Where its chain is broken its rows are not compared: the events prove nothing."""

    run_id: str
    first_broken_event: int | None = None
    differences: tuple[Difference, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether the ledger says of the run what was recorded."""
        return self.first_broken_event is None and not self.differences
