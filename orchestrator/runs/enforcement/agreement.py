"""Asking the policy, and those who have to agree where it wants that: then the policy is asked again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from orchestrator.approvals.desk import Standing
from orchestrator.errors import LedgerError, PolicyDenied
from orchestrator.ledger.events import ApprovalEnded, ApprovalRequested, ApprovalVoted, Event
from orchestrator.ledger.states import ApprovalState
from orchestrator.ledger.types import LedgerReader
from orchestrator.policy.obligations import Approval
from orchestrator.policy.types import Decision, PolicyRequest
from orchestrator.runs.types import Services

_LOOK_SECONDS = 1.0
"""Between two looks at whether somebody has agreed."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The last question that was asked, its answer, and how those stand who had to agree; None where nobody had to."""

    request: PolicyRequest
    decision: Decision
    standing: Standing | None = None

    @property
    def waits(self) -> bool:
        """Whether nothing is to be done before people have said something."""
        return self._demanded and self.standing is not None and self.standing.state is ApprovalState.OPEN

    @property
    def approval_id(self) -> str:
        """What is waited for."""
        return self.standing.record.approval_id if self.standing else ""

    @property
    def _demanded(self) -> bool:
        return _demand(self.decision) is not None

    def check(self) -> None:
        """Raise PolicyDenied unless those have agreed who had to."""
        if not self._demanded:
            return
        step = self.request.step_name
        if self.standing is None:
            raise PolicyDenied(f"step `{step}`: nobody was asked to approve it")
        record = self.standing.record
        match self.standing.state:
            case ApprovalState.APPROVED:
                return
            case ApprovalState.DENIED:
                refusal = self.standing.refusal
                who = f"{refusal.by.name} has refused it" if refusal else "it was refused"
                comment = f": {refusal.comment}" if refusal and refusal.comment else ""
                raise PolicyDenied(f"step `{step}`: {who}{comment} ({record.approval_id})")
            case ApprovalState.EXPIRED:
                raise PolicyDenied(
                    f"step `{step}`: not enough people have approved it in time ({record.approval_id})",
                    hint="run it again, and see `orchestrator approvals list` for who may approve",
                )
        raise PolicyDenied(f"step `{step}`: its request for approval is {self.standing.state.value}")


async def decided(services: Services, request: PolicyRequest, check: Callable[[Decision], object]) -> Asked:
    """Ask the policy; where it wants people to agree, see whether they have, and ask again with what they said.

    `check` raises PolicyDenied for a decision that cannot be obeyed anyway: then nobody is bothered. Raises
    LedgerError, VaultRefused and VaultUnavailable, and what an engine raises.
    """
    decision = await services.policy.decide(request)
    demand = _demand(decision)
    if demand is None:
        return Asked(request, decision)
    try:
        check(decision)
    except PolicyDenied:
        return Asked(request, replace(decision, obligations=replace(decision.obligations, approval=None)))
    standing = await services.approvals.standing(request, demand)
    if standing.state is ApprovalState.APPROVED:
        request = replace(request, approvals=standing.given())
        decision = await services.policy.decide(request)
        if (again := _demand(decision)) is not None and again != demand:
            standing = await services.approvals.standing(request, again)
    return Asked(request, decision, standing)


async def until_decided(services: Services, approval_id: str) -> None:
    """Wait, without any credential, until people have said enough, or their time is over. Raises LedgerError."""
    while True:
        record = await asyncio.to_thread(services.approvals.store.get, approval_id)
        if record.at(services.clock.now()) is not ApprovalState.OPEN:
            return
        await asyncio.sleep(_LOOK_SECONDS)


async def withdraw(services: Services, run_id: str) -> None:
    """Nobody has to agree any more to what will not happen. The history is complete without that."""
    with suppress(LedgerError):
        store, now = services.approvals.store, services.clock.now()
        await asyncio.to_thread(lambda: store.withdraw(run_id, now=now))


def _demand(decision: Decision) -> Approval | None:
    return decision.obligations.approval if decision.allow else None


def unrecorded(reader: LedgerReader, request: PolicyRequest, standing: Standing) -> tuple[Event, ...]:
    """What the run's history does not say yet of the request: that it was made, who has said what, how it ended."""
    record, step = standing.record, request.step_name
    kinds = {ApprovalRequested.kind, ApprovalVoted.kind, ApprovalEnded.kind}
    known = {
        (event.kind, event.data.get("signature"))
        for event in reader.events(record.run_id)
        if event.kind in kinds and event.data.get("approval_id") == record.approval_id
    }
    events: list[Event] = []
    if (ApprovalRequested.kind, None) not in known:
        demand = record.demand
        events.append(
            ApprovalRequested(
                step=step,
                attempt=request.attempt,
                approval_id=record.approval_id,
                subject=record.subject,
                approvers=tuple(demand["approvers"]),  # type: ignore[arg-type]  # as `Approval.as_json` wrote it
                count=int(demand["count"]),  # type: ignore[arg-type]
                valid_for=int(demand["valid_for"]),  # type: ignore[arg-type]
                expires_at=record.expires_at,
                asked_by=str(record.asked_by.get("name", "")),
            )
        )
    for entered, vote in standing.votes:
        if (ApprovalVoted.kind, entered.signature) not in known:
            events.append(
                ApprovalVoted(
                    step=step,
                    approval_id=record.approval_id,
                    by=vote.by.name,
                    verdict=vote.verdict.value,
                    at=vote.at,
                    statement=entered.statement,
                    signature=entered.signature,
                    comment=vote.comment,
                )
            )
    if standing.state is not ApprovalState.OPEN and (ApprovalEnded.kind, None) not in known:
        events.append(ApprovalEnded(step=step, approval_id=record.approval_id, outcome=standing.state.value))
    return tuple(events)
