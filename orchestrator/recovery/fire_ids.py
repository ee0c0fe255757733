"""The ids of runs that are to be at a nominal time, and what is done where somebody else has taken one.

Every process that comes to the time must find the same id, so that the ledger takes it once. Nobody may know it before:
else a run of anything under it would keep what was to be run from ever being run. So it is drawn when it is due.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta

from orchestrator.runs.types import Services

log = logging.getLogger(__name__)

_SKEW = timedelta(minutes=1)
"""A clock that was set back meanwhile may say so much less."""


@dataclass(frozen=True, slots=True)
class Occasion:
    """A nominal time of a workflow, and what starts its run then."""

    workflow: str
    trigger: str
    at: datetime

    def run_id(self, services: Services) -> str:
        """The same in every process. Raises LedgerError."""
        return services.heartbeat.store.run_of_fire(self.workflow, self.trigger, self.at)

    def another_id(self, services: Services, taken: str) -> str | None:
        """Another id where the run with this one is none of this time; None where another process has begun it.

        Raises LedgerError.
        """
        record = services.reader.run(taken)
        if record is None:
            return None  # it is being begun
        ours = (record.workflow, record.trigger) == (self.workflow, self.trigger)
        if ours and record.started_at >= self.at - _SKEW:
            return None
        log.warning(
            "%s: the id of its run at %s was taken by a run of %r that is none of this time: it is run under another; "
            "find out who can write the ledger, and has begun run %s",
            *(self.workflow, self.at.isoformat(), record.workflow, taken),
            extra={"run": taken, "workflow": self.workflow},
        )
        return services.heartbeat.store.run_of_fire(self.workflow, self.trigger, self.at, instead_of=taken)
