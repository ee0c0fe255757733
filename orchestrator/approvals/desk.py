"""Asking for approval, taking what people say to it, and telling how it stands."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from orchestrator.approvals.people import Person, ourselves
from orchestrator.approvals.votes import Verdict, Vote, is_signed, sign, signed, verified
from orchestrator.clock import Clock
from orchestrator.errors import Refused, UsageError
from orchestrator.jsontypes import JsonObject
from orchestrator.ledger.coordination.approvals import ApprovalRecord, ApprovalStore, VoteRecord
from orchestrator.ledger.ids import new_approval_id
from orchestrator.ledger.states import ApprovalState
from orchestrator.ledger.storage.times import time_to_text
from orchestrator.policy.obligations import Approval
from orchestrator.policy.types import PolicyRequest, subject_of
from orchestrator.vault.session import VaultSession

_SECONDS = 30.0
"""How long Vault may take to say who somebody is, to sign or to look at a signature."""

LONGEST_COMMENT = 500


@dataclass(frozen=True, slots=True)
class Standing:
    """How a request stands. `counting` are the approvals that count now; `votes` all that were really given."""

    record: ApprovalRecord
    state: ApprovalState
    counting: tuple[Vote, ...] = ()
    votes: tuple[tuple[VoteRecord, Vote], ...] = ()

    def given(self) -> tuple[JsonObject, ...]:
        """The approvals that count, as the policy sees them."""
        return tuple(
            {"by": vote.by.name, "at": time_to_text(vote.at), "comment": vote.comment} for vote in self.counting
        )

    @property
    def refusal(self) -> Vote | None:
        """Who has refused it."""
        return next((vote for _, vote in self.votes if vote.verdict is Verdict.DENY), None)


@dataclass(frozen=True, slots=True)
class ApprovalDesk:
    """The requests of one ledger. `store` is where they are; Vault signs what is said to them."""

    store: ApprovalStore
    vault: VaultSession
    clock: Clock

    async def standing(self, request: PolicyRequest, demand: Approval) -> Standing:
        """How the question stands with those who have to agree to it; asks them if nobody has asked them yet.

        Raises LedgerError, VaultRefused or VaultUnavailable.
        """
        wanted = await self._wanted(request, demand)
        record, new = await asyncio.to_thread(self.store.ask, wanted)
        if new:
            return Standing(record, ApprovalState.OPEN)
        found = await self._look(record, demand) if await self._is_ours(record) else None
        if found is None or (found.state is ApprovalState.APPROVED and not enough(found.counting, demand)):
            # Somebody has changed it, those who agreed did so too long ago, or others have to agree now.
            record, _ = await asyncio.to_thread(lambda: self.store.ask(wanted, instead_of=record.approval_id))
            return Standing(record, ApprovalState.OPEN)
        if found.state is ApprovalState.EXPIRED:
            now = self.clock.now()
            await asyncio.to_thread(lambda: self.store.end(record.approval_id, ApprovalState.EXPIRED, now=now))
        return found

    async def _wanted(self, request: PolicyRequest, demand: Approval) -> ApprovalRecord:
        """The request as it would be made now, by whoever asked first for the run."""
        asked_by = await self._first_asker(request.run) or await ourselves(self.vault, deadline=self._deadline())
        now, question = self.clock.now(), request.as_json()
        made = ApprovalRecord(
            approval_id=new_approval_id(),
            run_id=request.run,
            workflow=request.workflow,
            step=request.step_name,
            subject=subject_of(question),
            question=question,
            demand=demand.as_json(),
            asked_by=asked_by.as_json(),
            asked_at=now,
            expires_at=now + timedelta(seconds=demand.expires_in),
        )
        return replace(made, signature=await sign(self.vault, made.statement(), deadline=self._deadline()))

    async def _first_asker(self, run_id: str) -> Person | None:
        for record in await asyncio.to_thread(self.store.of_run, run_id):
            if await self._is_ours(record):
                return Person.from_json(record.asked_by)
        return None

    async def _is_ours(self, record: ApprovalRecord) -> bool:
        """Whether a request is what one of us has made, and shows what it is about: else what is said to it is void."""
        if subject_of(record.question) != record.subject:
            return False
        return await is_signed(self.vault, record.statement(), record.signature, deadline=self._deadline())

    async def look(self, approval_id: str) -> Standing:
        """How a request stands by what was demanded when it was made. Raises UnknownRun, and as `standing`."""
        return await self._look(await self._get(approval_id))

    async def vote(self, approval_id: str, by: Person, verdict: Verdict, comment: str = "") -> Standing:
        """Take what somebody says, who has proven who they are. Raises Refused where they may not say it.

        Raises UnknownRun, UsageError for a request that is closed, LedgerError, VaultRefused and VaultUnavailable.
        """
        record = await self._get(approval_id)
        _check(record, by, self.clock.now())
        if len(comment) > LONGEST_COMMENT or not comment.isprintable():
            raise UsageError(f"a comment is one line of at most {LONGEST_COMMENT} characters")
        vote = Vote(record.approval_id, record.subject, verdict, by, self.clock.now(), comment)
        entered = await signed(self.vault, vote, deadline=self._deadline())
        if not await asyncio.to_thread(lambda: self.store.vote(entered, now=self.clock.now())):
            raise UsageError(f"{record.approval_id} is closed meanwhile")
        found = await self._look(record)
        outcome = ApprovalState.DENIED if verdict is Verdict.DENY else ApprovalState.APPROVED
        if verdict is Verdict.DENY or enough(found.counting, _demand(record)):
            await asyncio.to_thread(lambda: self.store.end(record.approval_id, outcome, now=self.clock.now()))
        return await self.look(record.approval_id)

    async def _get(self, approval_id: str) -> ApprovalRecord:
        record = await asyncio.to_thread(self.store.get, approval_id)
        if not await self._is_ours(record):
            raise Refused(
                f"{record.approval_id} is not what was asked: somebody has changed it in the ledger",
                by="orchestrator",
                hint="find out who can write there; the run asks anew by itself when it goes on",
            )
        return record

    async def _look(self, record: ApprovalRecord, demand: Approval | None = None) -> Standing:
        """How a request stands, by what was demanded when it was made or by what is demanded now."""
        now, demand = self.clock.now(), demand or _demand(record)
        votes: list[tuple[VoteRecord, Vote]] = []
        for entered in await asyncio.to_thread(self.store.votes, record.approval_id):
            vote = await self._verified(record, entered)
            if vote is not None and not _why_not(record, vote.by, demand):
                votes.append((entered, vote))
        state = record.at(now)
        if any(vote.verdict is Verdict.DENY for _, vote in votes):
            state = ApprovalState.DENIED
        since = now - timedelta(seconds=demand.valid_for)
        counting = tuple(
            vote for _, vote in votes if vote.verdict is Verdict.APPROVE and since < vote.at <= record.expires_at
        )
        if state in (ApprovalState.OPEN, ApprovalState.EXPIRED) and enough(counting, demand):
            state = ApprovalState.APPROVED  # whoever closed it has died in between
        return Standing(record, state, counting, tuple(votes))

    async def _verified(self, record: ApprovalRecord, entered: VoteRecord) -> Vote | None:
        vote = await verified(self.vault, entered, deadline=self._deadline())
        return vote if vote is not None and vote.subject == record.subject else None

    def _deadline(self) -> float:
        return self.clock.monotonic() + _SECONDS


def enough(approvals: Sequence[Vote], demand: Approval) -> bool:
    """Whether so many different people have agreed: through one door, since nobody knows who is who at another."""
    doors: dict[str, set[str]] = {}
    for vote in approvals:
        doors.setdefault(vote.by.door, set()).add(vote.by.key)
    return any(len(people) >= demand.count for people in doors.values())


def _check(record: ApprovalRecord, by: Person, now: datetime) -> None:
    state = record.at(now)
    if state is not ApprovalState.OPEN:
        raise UsageError(f"{record.approval_id} is {state.value}: nothing can be said to it any more")
    if why := _why_not(record, by, _demand(record)):
        raise Refused(f"{by.name} {why}", by="orchestrator", hint="`orchestrator approvals show` says who may")


def _why_not(record: ApprovalRecord, by: Person, demand: Approval) -> str:
    """Why somebody has no say in a request, or an empty text."""
    if by.is_same_as(Person.from_json(record.asked_by)) or by.name.partition(":")[2] == record.question.get("agent"):
        return "asked for it, and nobody approves what they asked for themselves"
    return "" if by.is_one_of(demand.approvers) else "is not among those who may approve it"


def _demand(record: ApprovalRecord) -> Approval:
    demand = record.demand
    return Approval(
        approvers=tuple(demand["approvers"]),  # type: ignore[arg-type]  # as `Approval.as_json` wrote it
        count=int(demand["count"]),  # type: ignore[arg-type]
        expires_in=int(demand["expires_in"]),  # type: ignore[arg-type]
        valid_for=int(demand["valid_for"]),  # type: ignore[arg-type]
    )
