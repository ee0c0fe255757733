"""Decisions from the ledger, in the form in which policies' tools look at them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from orchestrator.errors import UnknownRun, UsageError
from orchestrator.ledger.events import LeaseRequested
from orchestrator.ledger.findings import DecisionFilter, DecisionRecord
from orchestrator.ledger.reading.id_lookup import whole_id
from orchestrator.ledger.states import IdKind
from orchestrator.ledger.types import LeaseRecord, LedgerReader
from orchestrator.policy.review.recorded import RecordedDecision
from orchestrator.policy.types import Question
from orchestrator.step_names import declared_step


def recorded_decisions(reader: LedgerReader, query: DecisionFilter) -> Iterator[RecordedDecision]:
    """In the order of the history; of a run also by the beginning of its id. Raises LedgerError, and UnknownRun."""
    if query.run is not None:
        query = replace(query, run=whole_id(reader, IdKind.RUN, query.run))
    return map(_recorded, reader.decisions(query))


def decision_about(reader: LedgerReader, run: str, step: str | None, attempt: int | None) -> RecordedDecision:
    """The last decision about a step of a run, or about one attempt; `run` may be a lease instead, without a step.

    Of a step for each item of a list it is that about its last item, unless one is named.

    Raises UnknownRun, and UsageError where it is not clear which one is meant.
    """
    if step is None:
        lease = reader.lease(whole_id(reader, IdKind.LEASE, run))
        if lease is None:
            raise UsageError(
                f"which step of {run}?", hint="orchestrator policy explain RUN STEP, or the id of a lease alone"
            )
        run, step, attempt = lease.run_id, _asked_for_by(reader, lease), lease.attempt
    run = whole_id(reader, IdKind.RUN, run)
    found = [
        each
        for each in recorded_decisions(reader, DecisionFilter(run=run))
        if step in (each.step, declared_step(each.step)) and attempt in (None, each.attempt)
    ]
    if not found:
        which = f"attempt {attempt} at " if attempt else ""
        raise UnknownRun(
            f"no decision about {which}step `{step}` of run {run} is in the ledger",
            hint=f"`orchestrator runs show {run}` shows what there is",
        )
    return found[-1]


def _asked_for_by(reader: LedgerReader, lease: LeaseRecord) -> str:
    """The step of a lease, with the item that it was for."""
    requests = reader.events(lease.run_id, kind=LeaseRequested.kind)
    return next((str(each.data["step"]) for each in requests if each.data["lease_id"] == lease.lease_id), lease.step)


def _recorded(record: DecisionRecord) -> RecordedDecision:
    decided = record.decided
    obligations = decided.obligations
    if decided.max_ttl is not None:
        obligations = {"max_ttl": decided.max_ttl, **obligations}
    return RecordedDecision(
        run=record.run_id,
        workflow=record.workflow,
        step=decided.step,
        attempt=decided.attempt,
        time=record.time,
        question=Question(decided.question),
        input=decided.input,
        input_digest=decided.input_digest,
        allow=decided.allow,
        reasons=tuple(decided.reasons),
        engine=decided.engine,
        revision=decided.revision,
        answer=decided.answer,
        obligations=obligations,
        decision_id=decided.decision_id,
    )
