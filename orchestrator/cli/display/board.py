"""What is known of a run while its events come in: a plain reduction, tested without any terminal."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime

from orchestrator.jsontypes import counted
from orchestrator.ledger.events import (
    WHOLE_RUN,
    ApprovalRequested,
    AttemptFinished,
    AttemptStarted,
    AttemptWaits,
    Decided,
    Event,
    LeaseDenied,
    LeaseEnded,
    LeaseExpired,
    LeaseFailed,
    LeaseIssued,
    LeaseRenewed,
    LeaseRequested,
    LeaseRevocationFailed,
    LeaseRevoked,
    LeaseRevoking,
    LeaseVaultRevoked,
    RunFinished,
    RunStarted,
    StepFinished,
)
from orchestrator.ledger.lease import OPEN, LeaseState
from orchestrator.ledger.states import RunState, StepState
from orchestrator.step_names import declared_step

_LEASE_EVENTS = (
    LeaseDenied
    | LeaseFailed
    | LeaseIssued
    | LeaseRenewed
    | LeaseRevoking
    | LeaseRevocationFailed
    | LeaseVaultRevoked
    | LeaseRevoked
    | LeaseExpired
    | LeaseEnded
)


@dataclass(slots=True)
class LeaseLine:
    """One lease; `issued` says whether it ever was, `of_a_step` whether it is not the orchestrator's own."""

    grant: str
    grant_kind: str
    resource: str
    attempt: int
    state: LeaseState = LeaseState.REQUESTED
    issued: bool = False
    reason: str = ""
    of_a_step: bool = True


@dataclass(slots=True)
class ItemCount:
    """Of a step for each item of a list: how many have ended, and which are under way."""

    ended: int = 0
    failed: int = 0
    under_way: set[str] = field(default_factory=set)

    def words(self) -> str:
        """`12 items, 2 failed, 3 under way`; empty for a step that has none."""
        if not self.ended and not self.under_way:
            return ""
        parts = [counted(self.ended, "item")]
        parts += [f"{self.failed} failed"] if self.failed else []
        parts += [f"{len(self.under_way)} under way"] if self.under_way else []
        return ", ".join(parts)


@dataclass(slots=True)
class StepLine:
    """One step. `state` is None until it begins; `denials` are the policy's reasons against it."""

    action: str = ""
    state: StepState | None = None
    attempt: int = 0
    started: datetime | None = None
    finished: datetime | None = None
    reason: str = ""
    retry_at: datetime | None = None
    """Until when it waits before it is tried again."""
    denials: tuple[str, ...] = ()
    leases: dict[str, LeaseLine] = field(default_factory=dict)
    items: ItemCount = field(default_factory=lambda: ItemCount())

    def leases_now(self) -> list[LeaseLine]:
        """The leases of the present attempt, in the order in which they were asked for."""
        return [lease for lease in self.leases.values() if lease.attempt == self.attempt]


@dataclass(slots=True)
class Board:
    """The state of one run. Feed it every event in order."""

    run_id: str = ""
    workflow: str = ""
    agent: str = ""
    started: datetime | None = None
    finished: datetime | None = None
    state: RunState = RunState.RUNNING
    exit_code: int | None = None
    reason: str = ""
    steps: dict[str, StepLine] = field(default_factory=dict)
    _of_lease: dict[str, LeaseLine] = field(default_factory=dict)

    def apply(self, run_id: str, time: datetime, event: Event) -> None:
        """Take in one event."""
        name = getattr(event, "step", "")
        if (declared := declared_step(name)) != name:
            self._item(self._step(declared), name, time, event)
            return
        match event:
            case RunStarted():
                self.run_id, self.started = run_id, time
                self.workflow, self.agent = event.workflow, event.agent
                self.steps = {step: StepLine() for step in event.steps}
            case RunFinished():
                self.state, self.exit_code, self.reason, self.finished = (
                    event.state,
                    event.exit_code,
                    event.reason,
                    time,
                )
            case AttemptStarted():
                step = self._step(event.step)
                step.action, step.attempt, step.state = event.action, event.attempt, StepState.RUNNING
                step.started, step.retry_at = step.started or time, None
            case AttemptWaits():
                self._step(event.step).reason = f"waits: {event.reason}"
            case Decided(allow=False):
                self._step(event.step).denials = event.reasons
            case ApprovalRequested():
                step = self._step(event.step)
                step.state, step.reason = StepState.WAITING, f"waits for the approval {event.approval_id}"
            case AttemptFinished() | StepFinished():
                step = self._step(event.step)
                step.state, step.reason, step.finished = event.state, event.reason or step.items.words(), time
                step.retry_at = event.retry_at if isinstance(event, AttemptFinished) else None
            case LeaseRequested():
                lease = LeaseLine(event.grant, event.grant_kind, event.resource, event.attempt)
                self._of_lease[event.lease_id] = lease
                if event.step == WHOLE_RUN:
                    lease.of_a_step = False
                else:
                    step = self._step(event.step)
                    step.leases[event.lease_id] = lease
                    step.reason = ""
            case _ if isinstance(event, _LEASE_EVENTS):
                self._lease(event)

    def _item(self, step: StepLine, name: str, time: datetime, event: Event) -> None:
        """Of an item of a list the line of its step says how many there are."""
        match event:
            case AttemptStarted():
                step.action, step.attempt, step.state = event.action, 1, StepState.RUNNING
                step.started = step.started or time
                step.items.under_way.add(name)
            case Decided(allow=False):
                step.denials = event.reasons
            case StepFinished():
                step.items.under_way.discard(name)
                step.items.ended += 1
                step.items.failed += event.state in (StepState.FAILED, StepState.REFUSED)
            case LeaseRequested():
                lease = LeaseLine(event.grant, event.grant_kind, event.resource, step.attempt)
                self._of_lease[event.lease_id] = step.leases[event.lease_id] = lease
        step.reason = step.items.words()

    def _step(self, name: str) -> StepLine:
        return self.steps.setdefault(name, StepLine())

    def _lease(self, event: _LEASE_EVENTS) -> None:
        lease = self._of_lease.get(event.lease_id)
        if lease is None:
            return
        lease.state = event.to
        lease.issued = lease.issued or event.to is LeaseState.ISSUED
        lease.reason = getattr(event, "reason", "") or getattr(event, "error", "")

    def lease_of(self, lease_id: str) -> tuple[str, LeaseLine] | None:
        """The step that a lease belongs to, and the lease."""
        for name, step in self.steps.items():
            if lease_id in step.leases:
                return name, step.leases[lease_id]
        return None

    def count(self) -> LeaseCount:
        """How many leases were issued to steps, and what became of them; of the orchestrator's own what is open."""
        leases = [lease for lease in self._of_lease.values() if lease.of_a_step or lease.state in OPEN]
        states = Counter(lease.state for lease in leases)
        return LeaseCount(
            issued=sum(lease.issued for lease in leases),
            revoked=states[LeaseState.REVOKED] + states[LeaseState.EXPIRED],
            ended=states[LeaseState.ENDED],
            refused=states[LeaseState.DENIED] + states[LeaseState.FAILED],
            pending=sum(states[state] for state in OPEN),
        )


@dataclass(frozen=True, slots=True)
class LeaseCount:
    """`revoked` counts what is confirmed gone; `pending` what nobody has confirmed gone yet."""

    issued: int
    revoked: int
    ended: int
    refused: int
    pending: int

    def words(self) -> str:
        """`5 issued, 4 confirmed gone, 1 ended (secret still valid)`, without the zeros after the first."""
        parts = (
            (self.revoked, "confirmed gone"),
            (self.ended, "ended (secret still valid)"),
            (self.refused, "refused"),
            (self.pending, "NOT CONFIRMED GONE"),
        )
        return ", ".join([f"{self.issued} issued", *(f"{number} {word}" for number, word in parts if number)])
