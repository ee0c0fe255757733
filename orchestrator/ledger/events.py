"""What can happen in a run, as data. The ledger keeps these and derives everything else from them.

No event holds a secret. `lease_id` is the orchestrator's own id; `vault_lease_id` and `accessor` are
Vault's handles, which open nothing. Durations are seconds; times are UTC and stamped by the ledger.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar

from orchestrator.jsontypes import JsonObject, JsonValue
from orchestrator.ledger.lease_events import LeaseDenied as LeaseDenied
from orchestrator.ledger.lease_events import LeaseEnded as LeaseEnded
from orchestrator.ledger.lease_events import LeaseEvent as LeaseEvent
from orchestrator.ledger.lease_events import LeaseExpired as LeaseExpired
from orchestrator.ledger.lease_events import LeaseFailed as LeaseFailed
from orchestrator.ledger.lease_events import LeaseIssued as LeaseIssued
from orchestrator.ledger.lease_events import LeaseLoginTried as LeaseLoginTried
from orchestrator.ledger.lease_events import LeaseRenewed as LeaseRenewed
from orchestrator.ledger.lease_events import LeaseRequested as LeaseRequested
from orchestrator.ledger.lease_events import LeaseRevocationFailed as LeaseRevocationFailed
from orchestrator.ledger.lease_events import LeaseRevoked as LeaseRevoked
from orchestrator.ledger.lease_events import LeaseRevoking as LeaseRevoking
from orchestrator.ledger.lease_events import LeaseVaultRevoked as LeaseVaultRevoked
from orchestrator.ledger.states import RunState, StepState
from orchestrator.ledger.task_events import TaskEvent

WHOLE_RUN = "(run)"
"""The step that is named for a lease which the orchestrator needed for the run as a whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted:
    """The first event of every run. `digest` is of the workflow's text; `steps` are in declaration order."""

    kind: ClassVar[str] = "run.started"
    workflow: str
    digest: str
    agent: str
    trigger: str
    inputs: JsonObject
    """As policies may see them; secret inputs are `***`."""
    steps: tuple[str, ...]
    directory: str = ""
    """Where the workflow's file was, absolute; its relative paths begin there."""
    notify: JsonObject = field(default_factory=dict)
    """Who is to be told how it ended, by the name of the destination: `on_failure`, `on_success` or `always`."""
    not_looked_for: tuple[str, ...] = ()
    """Secret inputs that are too short or too common to be recognised in an output."""
    reason: str = ""
    """Why, in the words of whoever started it."""
    task: str = ""
    """The id of the task that it is a call in; empty where it is none."""
    call: JsonObject = field(default_factory=dict)
    """What the agent chose when it called the tool."""
    caller: JsonObject = field(default_factory=dict)
    """How the agent was known that called, as `TaskOpened` has it."""
    token: JsonObject = field(default_factory=dict)
    """What the agent wanted of the token that the tool hands over: `scopes`, `cnf`."""
    retry_of: str = ""
    """The id of the failed run that it goes on from; empty where it is no retry."""
    original: str = ""
    """The first run of that chain: the idempotency keys of the steps stay those of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFinished:
    """The last event of a run: nothing of it is under way any more. `exit_code` is the process's."""

    kind: ClassVar[str] = "run.finished"
    state: RunState
    exit_code: int
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTakenOver:
    """Another process became the only writer of the run, because the one before was gone or was told to stop."""

    kind: ClassVar[str] = "run.taken_over"
    runner: str
    reason: str
    goes_on: bool = False
    """To go on with it, and not only to close what is open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResumed:
    """A run that was interrupted goes on, driven by `runner`."""

    kind: ClassVar[str] = "run.resumed"
    runner: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptStarted:
    """An attempt, counted from 1, begins. `timeout` is in seconds."""

    kind: ClassVar[str] = "attempt.started"
    step: str
    attempt: int
    step_key: str
    """Unique per attempt; part of the name of every database role issued for it."""
    action: str
    timeout: int
    confinement: tuple[str, ...] | None = None
    """The parts that its program is held to (see `orchestrator.actions.confinement`); None: it starts no program."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """The policy's answer, and what it was asked. Nothing of either is secret."""

    kind: ClassVar[str] = "decision"
    step: str
    attempt: int
    engine: str
    revision: str
    input_digest: str
    """SHA-256 of the canonical `input`."""
    allow: bool
    reasons: tuple[str, ...]
    max_ttl: int | None = None
    """An obligation in seconds; since `obligations` are recorded it is there."""
    question: str = "decision"
    """`admit` where the agent was refused before anything of the workflow was evaluated."""
    input: JsonObject = field(default_factory=dict)
    """The whole question, as `orchestrator.policy.documents` describes it; empty in older records."""
    answer: JsonValue = None
    """What the engine said, whole; None where that was no JSON, or far too long."""
    obligations: JsonObject = field(default_factory=dict)
    """What was understood of it as demands."""
    decision_id: str = ""
    """The engine's own name for the decision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notified:
    """The decision demanded that somebody is told, and that was tried. `error` is empty where it was delivered."""

    kind: ClassVar[str] = "notice"
    step: str
    attempt: int
    to: str
    """The name of the destination in the settings."""
    text: str
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunNotified:
    """Somebody was told how the run ended, as its workflow wants it. `error` is empty where it was delivered."""

    kind: ClassVar[str] = "run.notified"
    to: str
    """The name of the destination in the settings."""
    text: str
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalRequested:
    """The decision demands that people agree; the step waits without any credential. Durations in seconds."""

    kind: ClassVar[str] = "approval.requested"
    step: str
    attempt: int
    approval_id: str
    subject: str
    """What is agreed to: `orchestrator.policy.types.subject_of` the question."""
    approvers: tuple[str, ...]
    count: int
    valid_for: int
    expires_at: datetime
    asked_by: str
    """Who asked, in Vault's eyes; nobody approves their own request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalVoted:
    """Somebody has agreed or refused. What they did is signed by a key in Vault, so that no row makes it up."""

    kind: ClassVar[str] = "approval.voted"
    step: str
    approval_id: str
    by: str
    verdict: str
    """`approve` or `deny`."""
    at: datetime
    statement: str
    """What was signed: canonical JSON."""
    signature: str
    comment: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalEnded:
    """The step waits no more: `approved`, `denied` or `expired`."""

    kind: ClassVar[str] = "approval.ended"
    step: str
    approval_id: str
    outcome: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptWaits:
    """As many leases of a connection are open as may be. The attempt waits, within its timeout, without any."""

    kind: ClassVar[str] = "attempt.waits"
    step: str
    attempt: int
    connection: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptFinished:
    """The outcome of an attempt is known; its leases may still be open. `error_kind` is empty where it succeeded."""

    kind: ClassVar[str] = "attempt.finished"
    step: str
    attempt: int
    state: StepState
    error_kind: str = ""
    reason: str = ""
    retry_at: datetime | None = None
    """When the step is tried again; None: this was its last attempt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFinished:
    """The step is decided, after its last attempt or without any (skipped)."""

    kind: ClassVar[str] = "step.finished"
    step: str
    state: StepState
    reason: str = ""
    outputs: JsonValue = None
    """Only the keys that `outputs:` of the step names."""
    taken_from: str = ""
    """The id of the run in which the step succeeded, where a retry takes that over; it is not carried out here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OrphansSwept:
    """Logins of a step key that no lease covered were dropped; `roles` are their names, none if there were none."""

    kind: ClassVar[str] = "orphans.swept"
    step_key: str
    connection: str
    roles: tuple[str, ...] = field(default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class ValuesDropped:
    """Values of a run or task that had ended were dropped after their retention; the chain keeps their digests."""

    kind: ClassVar[str] = "values.dropped"
    values: tuple[str, ...]
    """Which: `inputs`, `outputs`."""
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRestarted:
    """The log over all runs goes on under another name, since what it had under the one before was lost in part."""

    kind: ClassVar[str] = "log.restarted"
    log: str
    """Its name from now on."""
    before: str
    """Its name until then, of whose checkpoints those of more than `size` entries are of what is lost."""
    size: int
    """How many entries it had then, and has under both names."""
    reason: str
    by: str
    """Who said so: the user of the operating system."""


Event = (
    RunStarted
    | RunTakenOver
    | RunResumed
    | RunFinished
    | RunNotified
    | AttemptStarted
    | AttemptWaits
    | Decided
    | Notified
    | ApprovalRequested
    | ApprovalVoted
    | ApprovalEnded
    | AttemptFinished
    | StepFinished
    | OrphansSwept
    | ValuesDropped
    | LogRestarted
    | LeaseEvent
    | TaskEvent
)
