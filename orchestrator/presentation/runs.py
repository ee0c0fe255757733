"""One run with everything that belongs to it, and how its caller was known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.jsontypes import JsonObject
from orchestrator.ledger.types import EventRecord, LeaseFilter, LeaseRecord, LedgerReader, RunRecord, StepRecord

DUTIES = ("(sweep)", "(bind)")
"""The grants of the logins that the orchestrator works with itself: `orchestrator.credentials.duties`."""


@dataclass(frozen=True, slots=True)
class RunStory:
    """A run with everything that belongs to it. `broken` is the first event whose hash does not fit, if any."""

    run: RunRecord
    steps: Sequence[StepRecord]
    leases: Sequence[LeaseRecord]
    events: Sequence[EventRecord]
    broken: int | None
    retried_by: str | None = None
    """The run that goes on from it."""

    @classmethod
    def read(cls, reader: LedgerReader, run: RunRecord) -> RunStory:
        """Leases come in the order in which they were asked for."""
        leases = reader.leases(LeaseFilter(run=run.run_id, limit=100_000))
        events, broken = reader.verified(run.run_id)
        return cls(
            run=run,
            steps=reader.steps(run.run_id),
            leases=sorted(leases, key=lambda lease: lease.requested_at),
            events=events,
            broken=broken,
            retried_by=reader.retries([run.run_id]).get(run.run_id),
        )

    def own_leases(self) -> list[LeaseRecord]:
        """Those that the orchestrator made for itself, to sweep a database or set row limits, with their tokens."""
        keys = {lease.step_key for lease in self.leases if lease.grant in DUTIES}
        return [lease for lease in self.leases if lease.step_key in keys]


def caller_facts(caller: JsonObject) -> list[tuple[str, str]]:
    """How an agent was known, as it is on record: by whom, as whom, from where, and for whom it acts."""
    by = [str(caller[name]) for name in ("issuer", "subject") if caller.get(name)]
    address = f"from {caller['address']}" if caller.get("address") else ""
    return [
        ("on behalf of", str(caller.get("on_behalf_of") or "")),
        ("known by", ", ".join(filter(None, (*by, address)))),
    ]
