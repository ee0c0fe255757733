"""Whose word counts on a request for approval, and for how long: the desk on a real ledger, with a key of its own."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from policy_questions import QUERY

from orchestrator.approvals.desk import LONGEST_COMMENT, ApprovalDesk, Standing
from orchestrator.approvals.people import Person
from orchestrator.approvals.votes import Verdict
from orchestrator.clock import SystemClock
from orchestrator.errors import Refused, UsageError
from orchestrator.ledger.coordination.approvals import ApprovalStore
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.states import ApprovalState
from orchestrator.policy.obligations import Approval
from orchestrator.policy.types import subject_of

ALICE = Person("vault:alice", ("vault-policy:leads",), "e-1")
BOB = Person("vault:bob", ("vault-policy:leads",), "e-2")
ROBOT = Person("vault:approle", (), "e-robot")
SLACK = Person("slack:U1")
LEADS = Approval(("vault-policy:leads", "slack:U1", "vault:alice"))


@dataclass
class Signer:
    """Stands for Vault's transit engine, and for what it says of our own token."""

    me: Person = ROBOT

    async def runtime_request(self, method: str, path: str, *, deadline: float, payload: Any = None) -> Any:
        if path == "auth/token/lookup-self":
            return {"data": {"display_name": self.me.name.partition(":")[2], "entity_id": self.me.entity}}
        mark = hmac.new(b"key", base64.b64decode(payload["input"]), hashlib.sha256).hexdigest()
        if path.startswith("transit/sign/"):
            return {"data": {"signature": mark}}
        return {"data": {"valid": hmac.compare_digest(mark, payload["signature"])}}


@dataclass
class Steady:
    """A clock that goes on when it is told to."""

    time: datetime = field(default_factory=lambda: datetime(2026, 11, 27, 8, tzinfo=UTC))

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return self.time.timestamp()

    def passes(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


@dataclass
class Office:
    store: ApprovalStore
    clock: Steady = field(default_factory=Steady)
    signer: Signer = field(default_factory=Signer)
    asked: Any = QUERY

    @property
    def desk(self) -> ApprovalDesk:
        return ApprovalDesk(self.store, self.signer, self.clock)  # type: ignore[arg-type]

    async def standing(self, demand: Approval = LEADS) -> Standing:
        return await self.desk.standing(self.asked, demand)

    async def says(self, by: Person, verdict: Verdict = Verdict.APPROVE, comment: str = "") -> Standing:
        return await self.desk.vote(self.store.all()[0].approval_id, by, verdict, comment)


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    with open_ledger(f"sqlite:///{tmp_path / 'ledger.db'}", clock=SystemClock()) as ledger:
        yield Office(ledger.approvals)


async def test_one_word_is_enough_and_it_is_asked_for_once(office: Office) -> None:
    first, second = await office.standing(), await office.standing()
    assert first.record.approval_id == second.record.approval_id
    assert (await office.says(ALICE)).state is ApprovalState.APPROVED
    found = await office.standing()
    assert (found.state, [each["by"] for each in found.given()]) == (ApprovalState.APPROVED, ["vault:alice"])
    with pytest.raises(UsageError, match="approved"):
        await office.says(BOB)


async def test_two_are_two_persons_through_one_door(office: Office) -> None:
    two = replace(LEADS, count=2)
    await office.standing(two)
    assert (await office.says(ALICE)).state is ApprovalState.OPEN
    assert (await office.says(replace(ALICE, name="vault-entity:e-1"))).state is ApprovalState.OPEN
    assert (await office.says(SLACK)).state is ApprovalState.OPEN, "nobody knows whether that is alice, too"
    assert (await office.says(BOB)).state is ApprovalState.APPROVED


@pytest.mark.parametrize(
    "by",
    [
        Person("vault:mallory", ("vault-policy:others",), "e-9"),
        Person("vault-policy:others", (), ""),
        Person("", (), ""),
        Person("vault:alice2", (), "e-9"),
        Person("slack:U11"),
    ],
)
async def test_who_is_not_named_has_no_say(office: Office, by: Person) -> None:
    await office.standing()
    for verdict in Verdict:
        with pytest.raises(Refused, match="is not among those"):
            await office.says(by, verdict)


@pytest.mark.parametrize("by", [replace(ALICE, entity="e-robot"), replace(ALICE, name="vault:approle")])
async def test_nobody_approves_what_they_asked_for(office: Office, by: Person) -> None:
    await office.standing()
    with pytest.raises(Refused, match="nobody approves what they asked for"):
        await office.says(by)


async def test_who_asked_first_for_a_run_has_asked_for_all_of_it(office: Office) -> None:
    """Another process goes on with the run: whoever began it still approves nothing of it."""
    office.signer.me = ALICE
    await office.standing()
    office.signer.me, office.asked = ROBOT, replace(QUERY, step="another")
    record = (await office.standing()).record
    with pytest.raises(Refused, match="nobody approves what they asked for"):
        await office.desk.vote(record.approval_id, ALICE, Verdict.APPROVE)


async def test_an_agent_has_no_say_in_its_own_steps(office: Office) -> None:
    await office.standing()
    with pytest.raises(Refused, match="nobody approves what they asked for"):
        await office.says(replace(ALICE, name=f"vault:{QUERY.agent}"))


async def test_an_approval_counts_as_long_as_it_is_valid_and_is_asked_for_again_then(office: Office) -> None:
    demand = replace(LEADS, valid_for=60)
    await office.standing(demand)
    await office.says(ALICE)
    office.clock.passes(59)
    assert (await office.standing(demand)).state is ApprovalState.APPROVED
    office.clock.passes(1)
    again = await office.standing(demand)
    assert (again.state, len(office.store.all())) == (ApprovalState.OPEN, 2)
    assert (await office.standing(demand)).record.approval_id == again.record.approval_id


async def test_what_is_demanded_now_counts_and_not_what_was(office: Office) -> None:
    await office.standing()
    await office.says(ALICE)
    assert (await office.standing(replace(LEADS, count=2))).state is ApprovalState.OPEN
    assert len(office.store.all()) == 2


async def test_who_may_not_approve_any_more_has_not(office: Office) -> None:
    await office.standing()
    await office.says(ALICE)
    assert (await office.standing(Approval(("vault:bob",)))).state is ApprovalState.OPEN


async def test_its_time_runs_out(office: Office) -> None:
    demand = replace(LEADS, expires_in=60)
    await office.standing(demand)
    office.clock.passes(59)
    assert (await office.standing(demand)).state is ApprovalState.OPEN
    office.clock.passes(1)
    with pytest.raises(UsageError, match="expired"):
        await office.says(ALICE)
    assert (await office.standing(demand)).state is ApprovalState.EXPIRED
    assert office.store.all()[0].state is ApprovalState.EXPIRED


async def test_a_word_in_time_counts_even_if_nobody_closed_the_request(office: Office) -> None:
    """Whoever took it has died between the two."""
    demand = replace(LEADS, expires_in=60)
    await office.standing(demand)
    record = office.store.all()[0]
    office.store.end = lambda *given, **how: False  # type: ignore[method-assign]
    await office.says(ALICE)
    assert office.store.all()[0].state is ApprovalState.OPEN
    office.clock.passes(100)
    assert (await office.desk.look(record.approval_id)).state is ApprovalState.APPROVED


async def test_one_no_is_a_no_whoever_agrees(office: Office) -> None:
    two = replace(LEADS, count=2)
    await office.standing(two)
    await office.says(ALICE)
    found = await office.says(BOB, Verdict.DENY, "not today")
    assert found.state is ApprovalState.DENIED
    assert found.refusal is not None
    assert (found.refusal.by.name, found.refusal.comment) == ("vault:bob", "not today")
    assert (await office.standing(two)).state is ApprovalState.DENIED
    assert office.store.all()[0].state is ApprovalState.DENIED


async def test_of_one_person_the_last_word_counts(office: Office) -> None:
    await office.standing(replace(LEADS, count=2))
    await office.says(ALICE)
    office.clock.passes(1)
    assert (await office.says(ALICE, comment="again")).counting[0].comment == "again"
    assert len(office.store.votes(office.store.all()[0].approval_id)) == 1


@pytest.mark.parametrize("comment", ["x" * (LONGEST_COMMENT + 1), "two\nlines", "\x1b[2J", "\u202e"])
async def test_a_comment_is_one_line(office: Office, comment: str) -> None:
    await office.standing()
    with pytest.raises(UsageError, match="one line"):
        await office.says(ALICE, comment=comment)


async def test_another_question_is_another_request_and_the_former_is_withdrawn(office: Office) -> None:
    await office.standing()
    office.asked = replace(QUERY, inputs={"limit": 6})
    await office.standing()
    states = {each.subject: each.state for each in office.store.all()}
    former, present = (subject_of(each.as_json()) for each in (QUERY, office.asked))
    assert states == {former: ApprovalState.WITHDRAWN, present: ApprovalState.OPEN}


async def test_what_was_decided_stays_so_when_its_run_ends(office: Office) -> None:
    await office.standing()
    await office.says(ALICE)
    office.store.withdraw(QUERY.run, now=office.clock.now())
    (record,) = office.store.all()
    assert record.state is ApprovalState.APPROVED
    assert not office.store.end(record.approval_id, ApprovalState.DENIED, now=office.clock.now())
    assert office.store.all()[0].state is ApprovalState.APPROVED


class TestForgery:
    async def test_a_word_about_something_else_says_nothing(self, office: Office) -> None:
        """Really signed, for another request, or for the same one about another question."""
        from orchestrator.approvals.votes import Vote, signed

        record = (await office.standing()).record
        vote = Vote(record.approval_id, record.subject, Verdict.APPROVE, ALICE, office.clock.now())
        for other in (replace(vote, approval_id="appr_x"), replace(vote, subject="sha256:00")):
            made = await signed(office.signer, other, deadline=0)  # type: ignore[arg-type]
            entered = replace(made, approval_id=record.approval_id)
            assert office.store.vote(entered, now=office.clock.now())
            assert (await office.standing()).state is ApprovalState.OPEN
        stranger = replace(vote, by=Person("vault:mallory", (), "e-9"))
        assert office.store.vote(await signed(office.signer, stranger, deadline=0), now=office.clock.now())  # type: ignore[arg-type]
        late = replace(vote, at=record.expires_at + timedelta(seconds=1))
        assert office.store.vote(await signed(office.signer, late, deadline=0), now=office.clock.now())  # type: ignore[arg-type]
        found = await office.standing()
        assert (found.state, found.counting) == (ApprovalState.OPEN, ())

    async def test_a_changed_word_says_nothing(self, office: Office) -> None:
        from orchestrator.approvals.votes import Vote, signed

        record = (await office.standing()).record
        vote = Vote(record.approval_id, record.subject, Verdict.DENY, ALICE, office.clock.now())
        made = await signed(office.signer, vote, deadline=0)  # type: ignore[arg-type]
        changed = replace(vote, verdict=Verdict.APPROVE).statement()
        assert office.store.vote(replace(made, statement=changed), now=office.clock.now())
        assert (await office.standing()).votes == ()
        assert office.store.vote(replace(made, statement="[]"), now=office.clock.now())
        assert (await office.standing()).votes == ()

    async def test_the_state_that_somebody_wrote_is_not_believed(self, office: Office) -> None:
        record = (await office.standing()).record
        assert office.store.end(record.approval_id, ApprovalState.APPROVED, now=office.clock.now())
        found = await office.standing()
        assert (found.state, found.counting) == (ApprovalState.OPEN, ())
        assert found.record.approval_id != record.approval_id

    async def test_a_request_that_somebody_has_changed_is_made_anew_whoever_agreed(self, office: Office) -> None:
        record = (await office.standing()).record
        await office.says(ALICE)
        assert (await office.standing()).state is ApprovalState.APPROVED
        real = office.store.ask

        def changed(wanted: Any, **how: Any) -> Any:
            found, new = real(wanted, **how)
            return (found if new else replace(found, asked_by=BOB.as_json())), new

        office.store.ask = changed  # type: ignore[method-assign]
        found = await office.standing()
        assert found.state is ApprovalState.OPEN
        assert found.record.approval_id != record.approval_id

    async def test_a_no_that_nobody_closed_the_request_for_is_a_no(self, office: Office) -> None:
        await office.standing()
        office.store.end = lambda *given, **how: False  # type: ignore[method-assign]
        await office.says(BOB, Verdict.DENY)
        assert office.store.all()[0].state is ApprovalState.OPEN
        assert (await office.standing()).state is ApprovalState.DENIED

    @pytest.mark.parametrize("late", [False, True])
    async def test_nothing_is_entered_into_a_closed_request(self, office: Office, late: bool) -> None:
        from orchestrator.approvals.votes import Vote, signed

        record = (await office.standing()).record
        vote = Vote(record.approval_id, record.subject, Verdict.APPROVE, ALICE, office.clock.now())
        entered = await signed(office.signer, vote, deadline=0)  # type: ignore[arg-type]
        if not late:
            office.store.withdraw(QUERY.run, now=office.clock.now())
        now = record.expires_at if late else office.clock.now()
        assert not office.store.vote(entered, now=now)
        assert office.store.votes(record.approval_id) == []
