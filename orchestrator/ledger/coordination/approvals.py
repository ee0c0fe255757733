"""What waits for somebody to agree, shared by those who ask and those who answer.

History is in the events of the run; here is what several processes must agree on meanwhile. Nothing here is believed
by itself: whoever opens credentials looks at the signed votes. Synchronous and safe for threads; every method may raise
LedgerError.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Engine, RowMapping, delete, exists, insert, select, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from orchestrator.errors import LedgerError, UnknownRun
from orchestrator.jsontypes import JsonObject
from orchestrator.ledger.faults import ledger_error
from orchestrator.ledger.reading.newest_first import Order, Part, newest, unindexed
from orchestrator.ledger.states import ApprovalState, RunState, StepState
from orchestrator.ledger.storage.codec import canonical_json
from orchestrator.ledger.storage.connect import BEGIN
from orchestrator.ledger.storage.tables import approval, approval_vote, request_seen, run, step
from orchestrator.ledger.storage.times import text_to_time, time_to_text

ORDER = Order(approval, "asked_at", "approval_id")

SEEN_SECONDS = 600
"""How long signed requests from outside are remembered: longer than any of them is taken."""

_DECIDED = [state.value for state in (ApprovalState.APPROVED, ApprovalState.DENIED, ApprovalState.EXPIRED)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalRecord:
    """One request. `question` is the policy's, whole; `demand` the obligation; times are UTC."""

    approval_id: str
    run_id: str
    workflow: str
    step: str
    subject: str
    question: JsonObject
    demand: JsonObject
    asked_by: JsonObject
    asked_at: datetime
    expires_at: datetime
    state: ApprovalState = ApprovalState.OPEN
    ended_at: datetime | None = None
    signature: str = ""
    """What Vault made of `statement()`."""

    def statement(self) -> str:
        """What is signed of it, as canonical JSON: everything but how it stands."""
        return canonical_json(
            {
                "approval": self.approval_id,
                "run": self.run_id,
                "workflow": self.workflow,
                "step": self.step,
                "subject": self.subject,
                "demand": self.demand,
                "asked_by": self.asked_by,
                "asked_at": time_to_text(self.asked_at),
                "expires_at": time_to_text(self.expires_at),
            }
        )

    def at(self, now: datetime) -> ApprovalState:
        """How it stands at this time: one that nobody has closed yet may have expired."""
        late = self.state is ApprovalState.OPEN and now >= self.expires_at
        return ApprovalState.EXPIRED if late else self.state


@dataclass(frozen=True, slots=True, kw_only=True)
class VoteRecord:
    """What somebody said: `statement` is canonical JSON, and `signature` what Vault made of it."""

    approval_id: str
    voter: str
    verdict: str
    at: datetime
    statement: str
    signature: str


class ApprovalStore:
    """The tables `approval` and `approval_vote` of a ledger."""

    def __init__(self, engine: Engine, label: str) -> None:
        self._engine = engine
        self._label = label

    def ask(self, wanted: ApprovalRecord, *, instead_of: str | None = None) -> tuple[ApprovalRecord, bool]:
        """Enter a request, unless the run's step has asked the same before; which one counts, and whether it is new.

        `instead_of` is the one whose approvals do not count any more. Others of the step that are open are withdrawn:
        what is asked now is something else.
        """
        with self._writing() as connection:
            of_step = (approval.c.run_id == wanted.run_id) & (approval.c.step == wanted.step)
            known = select(approval).where(of_step, approval.c.subject == wanted.subject)
            newest = known.order_by(approval.c.asked_at.desc(), approval.c.approval_id.desc()).limit(1)
            row = connection.execute(newest).mappings().first()
            if row is not None and row["approval_id"] != instead_of:
                return _record(row), False
            _withdraw(connection, of_step, wanted.asked_at)
            connection.execute(insert(approval).values(_values(wanted)))
            return wanted, True

    def of_run(self, run_id: str) -> Sequence[ApprovalRecord]:
        """The requests of a run, oldest first."""
        query = select(approval).where(approval.c.run_id == run_id).order_by(approval.c.asked_at)
        with self._connection() as connection:
            return [_record(row) for row in connection.execute(query).mappings()]

    def get(self, approval_id: str) -> ApprovalRecord:
        """The request with this id, or the only one whose id begins so. Raises UnknownRun."""
        with self._connection() as connection:
            begins = approval.c.approval_id.startswith(approval_id, autoescape=True)
            rows = connection.execute(select(approval).where(begins).limit(2)).mappings().all()
        exact = [row for row in rows if row["approval_id"] == approval_id]
        if len(exact or rows) != 1 or not approval_id:
            what = "more than one request begins" if len(rows) > 1 else "no request for approval begins"
            raise UnknownRun(f"{what} with {approval_id!r}", hint="`orchestrator approvals list` shows them")
        return _record((exact or rows)[0])

    def all(
        self,
        *,
        state: ApprovalState | None = None,
        run: str | None = None,
        before: ApprovalRecord | None = None,
        limit: int = 200,
    ) -> Sequence[ApprovalRecord]:
        """Newest first; with `before` only those that stand after it in such a list."""
        until, key = (None, None) if before is None else (time_to_text(before.asked_at), before.approval_id)
        of_run = [] if run is None else [unindexed(approval.c.run_id) == run]
        states = ApprovalState if state is None else (state,)
        parts = [Part(under={"state": each.value}, conditions=of_run, until=until, until_key=key) for each in states]
        with self._connection() as connection:
            return [_record(row) for row in connection.execute(newest(ORDER, parts, limit)).mappings()]

    def votes(self, approval_id: str) -> Sequence[VoteRecord]:
        """What was said to a request, in the order in which it was said."""
        query = select(approval_vote).where(approval_vote.c.approval_id == approval_id)
        with self._connection() as connection:
            rows = connection.execute(query.order_by(approval_vote.c.at, approval_vote.c.voter)).mappings().all()
        return [
            VoteRecord(
                approval_id=row["approval_id"],
                voter=row["voter"],
                verdict=row["verdict"],
                at=text_to_time(row["at"]),
                statement=row["statement"],
                signature=row["signature"],
            )
            for row in rows
        ]

    def vote(self, vote: VoteRecord, *, now: datetime) -> bool:
        """Enter a vote while the request is open; False if it is not. Of one person the last one counts."""
        with self._writing() as connection:
            this = approval.c.approval_id == vote.approval_id
            row = connection.execute(select(approval).where(this).with_for_update()).mappings().first()
            if row is None or _record(row).at(now) is not ApprovalState.OPEN:
                return False
            theirs = (approval_vote.c.approval_id == vote.approval_id) & (approval_vote.c.voter == vote.voter)
            connection.execute(delete(approval_vote).where(theirs))
            connection.execute(
                insert(approval_vote).values(
                    approval_id=vote.approval_id,
                    voter=vote.voter,
                    verdict=vote.verdict,
                    at=time_to_text(vote.at),
                    statement=vote.statement,
                    signature=vote.signature,
                )
            )
            return True

    def end(self, approval_id: str, state: ApprovalState, *, now: datetime) -> bool:
        """Close an open request; False if somebody has."""
        with self._writing() as connection:
            this = (approval.c.approval_id == approval_id) & (approval.c.state == ApprovalState.OPEN.value)
            changed = {"state": state.value, "ended_at": time_to_text(now)}
            return connection.execute(update(approval).where(this).values(changed)).rowcount == 1

    def decided_runs(self, now: datetime) -> Sequence[str]:
        """The runs that wait, and of which a waiting step's newest request is decided or out of time."""
        newer = approval.alias("newer")
        is_newest = ~exists().where(
            newer.c.run_id == approval.c.run_id, newer.c.step == approval.c.step, newer.c.asked_at > approval.c.asked_at
        )
        late = (approval.c.state == ApprovalState.OPEN.value) & (approval.c.expires_at <= time_to_text(now))
        query = (
            select(approval.c.run_id)
            .distinct()
            .join(run, run.c.run_id == approval.c.run_id)
            .join(step, (step.c.run_id == approval.c.run_id) & (step.c.step == approval.c.step))
            .where(run.c.state == RunState.WAITING.value, step.c.state == StepState.WAITING.value)
            .where(approval.c.state.in_(_DECIDED) | late, is_newest)
        )
        with self._connection() as connection:
            return [str(row[0]) for row in connection.execute(query)]

    def first_time(self, request: str, *, now: datetime) -> bool:
        """Whether a signed request has not come before, at any process, for as long as anybody could send it again."""
        try:
            with self._writing() as connection:
                since = time_to_text(now - timedelta(seconds=SEEN_SECONDS))
                connection.execute(delete(request_seen).where(request_seen.c.at < since))
                connection.execute(insert(request_seen).values(request=request, at=time_to_text(now)))
        except LedgerError as error:
            if isinstance(error.__cause__, IntegrityError):
                return False
            raise
        return True

    def withdraw(self, run_id: str, *, now: datetime) -> None:
        """Close what is still open of a run that has ended."""
        with self._writing() as connection:
            _withdraw(connection, approval.c.run_id == run_id, now)

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with self._connection(BEGIN, "BEGIN IMMEDIATE") as connection, connection.begin():
            yield connection

    @contextmanager
    def _connection(self, option: str = BEGIN, begin: str = "BEGIN") -> Iterator[Connection]:
        try:
            with self._engine.connect().execution_options(**{option: begin}) as connection:
                yield connection
        except SQLAlchemyError as error:
            raise ledger_error(error, self._label) from error


def _withdraw(connection: Connection, which: Any, now: datetime) -> None:
    changed = {"state": ApprovalState.WITHDRAWN.value, "ended_at": time_to_text(now)}
    connection.execute(update(approval).where(which, approval.c.state == ApprovalState.OPEN.value).values(changed))


def _values(record: ApprovalRecord) -> dict[str, Any]:
    return {
        "approval_id": record.approval_id,
        "run_id": record.run_id,
        "workflow": record.workflow,
        "step": record.step,
        "subject": record.subject,
        "question": canonical_json(record.question),
        "demand": canonical_json(record.demand),
        "asked_by": canonical_json(record.asked_by),
        "asked_at": time_to_text(record.asked_at),
        "expires_at": time_to_text(record.expires_at),
        "state": record.state.value,
        "ended_at": time_to_text(record.ended_at) if record.ended_at else None,
        "signature": record.signature,
    }


def _record(row: RowMapping) -> ApprovalRecord:
    try:
        return _as_recorded(row)
    except (ValueError, TypeError) as error:
        raise LedgerError(
            f"the request {str(row['approval_id'])[:40]} was not written by this ledger",
            hint="find out who can write into the table `approval`, and delete the row",
        ) from error


def _as_recorded(row: RowMapping) -> ApprovalRecord:
    return ApprovalRecord(
        approval_id=row["approval_id"],
        run_id=row["run_id"],
        workflow=row["workflow"],
        step=row["step"],
        subject=row["subject"],
        question=json.loads(row["question"]),
        demand=json.loads(row["demand"]),
        asked_by=json.loads(row["asked_by"]),
        asked_at=text_to_time(row["asked_at"]),
        expires_at=text_to_time(row["expires_at"]),
        state=ApprovalState(row["state"]),
        ended_at=text_to_time(row["ended_at"]) if row["ended_at"] else None,
        signature=row["signature"],
    )
