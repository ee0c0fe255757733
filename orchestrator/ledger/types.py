"""What the ledger offers to those who write it, and the rows that it gives to those who read it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from orchestrator.jsontypes import JsonObject, JsonValue
from orchestrator.ledger.lease import LeaseState
from orchestrator.ledger.states import IdKind, RunState, StepState, TaskEnd, TaskState

if TYPE_CHECKING:
    from orchestrator.ledger.events import Event, LeaseRequested, RunResumed, RunStarted, ValuesDropped
    from orchestrator.ledger.findings import DecisionFilter, DecisionRecord, Examined, Exposure
    from orchestrator.ledger.places import Blocked, Places, PlacesWanted
    from orchestrator.ledger.task_events import TaskCalled, TaskClosed, TaskOpened


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run as it stands now. `fence` is the newest; times are UTC."""

    run_id: str
    workflow: str
    digest: str
    agent: str
    trigger: str
    inputs: JsonObject
    state: RunState
    started_at: datetime
    finished_at: datetime | None
    exit_code: int | None
    reason: str
    fence: int
    task: str | None = None
    """The task in which it is a call."""
    steps: tuple[str, ...] = ()
    """As declared; of a call the one tool."""
    retry_of: str | None = None
    """The failed run that it goes on from."""
    dropped: tuple[str, ...] = ()
    """Which of its values were dropped after their retention: `inputs`, `outputs`."""


@dataclass(frozen=True, slots=True)
class StepRecord:
    """A step as it stands now. `attempts` counts those begun; `outputs` are the kept keys of its output."""

    run_id: str
    step: str
    state: StepState
    attempts: int
    action: str
    started_at: datetime | None
    finished_at: datetime | None
    reason: str
    outputs: JsonValue


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """A lease as it stands now, without any secret. `ttl` is in seconds; times are UTC."""

    lease_id: str
    run_id: str
    workflow: str
    agent: str
    step: str
    attempt: int
    step_key: str
    grant: str
    grant_kind: str
    resource: str
    scope: JsonObject
    state: LeaseState
    ttl: int
    requested_at: datetime
    issued_at: datetime | None
    expires_at: datetime | None
    closed_at: datetime | None
    """When it reached a final state."""
    vault_lease_id: str
    accessor: str
    subject: str
    reason: str
    """Why it was denied, failed or is still being revoked; for `ended`, how long it stays valid."""
    revoking_since: datetime | None = None
    """When taking it back began."""
    failed_tries: int = 0
    """How often it could not be confirmed gone."""
    last_try_at: datetime | None = None
    """When that happened last."""


@dataclass(frozen=True, slots=True)
class EventRecord:
    """An event as it is stored, with its place in the run's chain. `seq` counts from 1."""

    run_id: str
    seq: int
    time: datetime
    kind: str
    data: JsonObject
    """With the values that lie beside it; empty where these were dropped."""
    digest: str
    """SHA-256 over the previous event's digest and this event's canonical JSON."""
    dropped: frozenset[str] = frozenset()
    """The fields whose values were dropped after their retention."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFilter:
    """All given parts must match. Times bound `started_at`: `since` is included, `until` is not.

    Sweeps, proofs, and the calls in tasks are left out unless `everything` is asked for. Calls are also there where
    their workflow is named, and proofs where their trigger is.
    """

    workflow: str | None = None
    state: RunState | None = None
    agent: str | None = None
    trigger: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    before: RunRecord | None = None
    """Only those that stand after this one in a list, newest first."""
    everything: bool = False
    limit: int = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseFilter:
    """All given parts must match. `resource` matches as a prefix; times bound `requested_at`."""

    run: str | None = None
    task: str | None = None
    """Of all calls in it."""
    workflow: str | None = None
    step: str | None = None
    agent: str | None = None
    states: frozenset[LeaseState] | None = None
    resource: str | None = None
    grant_kind: str | None = None
    step_key: str | None = None
    vault_lease_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    before: LeaseRecord | None = None
    """Only those that stand after this one in a list, newest first."""
    limit: int = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRecord:
    """A task as it stands now. Times are UTC; `idle` in seconds."""

    task_id: str
    workflow: str
    digest: str
    agent: str
    inputs: JsonObject
    tools: tuple[str, ...]
    state: TaskState
    opened_at: datetime
    closed_at: datetime | None
    deadline: datetime
    idle: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class CallLimits:
    """How often a tool may be called in one task, and how many of its calls may be open; None: no limit."""

    max_calls: int | None = None
    max_open: int | None = None
    of_agent: int | None = None
    """How many calls of the agent may be open at once, over all its tasks."""


class LedgerWriter(Protocol):
    """The writing side. What `append` was given is durable when it returns; events of one call are one transaction."""

    async def begin_run(self, run_id: str, started: RunStarted | TaskOpened, also: Sequence[Event] = ()) -> int:
        """Record a new run, or task, and return its fence number. With it, or not at all, what `also` says of it.

        Raises UsageError if the id is taken, and AgentBlocked.
        """
        ...

    async def begin_call(
        self, called: TaskCalled, task_id: str, started: RunStarted, limits: CallLimits, runner_id: str
    ) -> int:
        """Record that a tool is called in a task, and the run that the call is, which that process drives.

        Returns the run's fence number.

        Raises UnknownRun, TaskEnded, BudgetSpent, AgentBlocked, and UsageError if the call's id is taken.
        """
        ...

    async def drop_values(self, run_id: str, dropped: ValuesDropped) -> bool:
        """Drop values of a run, or task, that has ended; False where it goes on. Raises UnknownRun or LedgerError."""
        ...

    async def overwrite_dropped(self) -> None:
        """Let files hold no longer what was dropped, as far as that is in our hands. Raises LedgerError."""
        ...

    async def close_task(self, task_id: str, closed: TaskClosed) -> bool:
        """Record that a task is closed; False where it was. Raises UnknownRun."""
        ...

    async def resume(self, run_id: str, resumed: RunResumed) -> int:
        """Make a run that was interrupted, or waits, run again; return its new fence number.

        Of several who try one succeeds. Raises UnknownRun, AgentBlocked, and FenceLost for the others.
        """
        ...

    async def request(
        self, run_id: str, fence: int, wanted: PlacesWanted, prelude: Sequence[Event], intents: Sequence[LeaseRequested]
    ) -> Blocked | None:
        """As `append`, if the attempt may have its places now, by the line over all processes: None then.

        If not, it is in line from now on, and only `prelude` and the event that it waits are recorded, if they are new.
        """
        ...

    async def leave_line(self, run_id: str, step: str, attempt: int) -> None:
        """An attempt waits for places no longer."""
        ...

    async def take_over(self, run_id: str, *, ended: bool = False) -> int:
        """Become the only writer of a run whose process is gone: a new fence number, and FenceLost for the old one.

        With `ended` only if the run is not running: FenceLost where it was resumed meanwhile.
        """
        ...

    async def append(self, run_id: str, fence: int, events: Sequence[Event]) -> None:
        """Commit the events. Raises FenceLost, LedgerError or IllegalTransition; then none of them is recorded."""
        ...

    async def aclose(self) -> None:
        """Finish what was given to be written, and close."""
        ...


class LedgerReader(Protocol):
    """The reading side, synchronous: the command line and tests use it."""

    def run(self, run_id: str) -> RunRecord | None:
        """The run, or None."""
        ...

    def runs(
        self, *, workflow: str | None = None, state: RunState | None = None, limit: int = 50
    ) -> Sequence[RunRecord]:
        """Those of a `RunFilter` of these parts."""
        ...

    def newest_runs(self, query: RunFilter) -> Sequence[RunRecord]:
        """Newest first."""
        ...

    def retry_of(self, run_id: str) -> RunRecord | None:
        """The run that goes on from this one, or None."""
        ...

    def retries(self, run_ids: Collection[str]) -> Mapping[str, str]:
        """Of those of these runs that have been retried, the ids of their retries."""
        ...

    def ids(self, kind: IdKind, beginnings: Collection[str], limit: int) -> Sequence[str]:
        """The ids of this kind that begin with any of these texts, in order, not more than `limit`."""
        ...

    def workflows(self, limit: int) -> Sequence[str]:
        """The names of the workflows of which there are runs or tasks, in order."""
        ...

    def steps(self, run_id: str) -> Sequence[StepRecord]:
        """The steps of a run in declaration order; none of an unknown one."""
        ...

    def some_steps(self, run_id: str, first: int, most: int) -> tuple[Sequence[StepRecord], int]:
        """So many of them, after the first ones, and how many there are."""
        ...

    def task(self, task_id: str) -> TaskRecord | None:
        """The task, or None."""
        ...

    def tasks(
        self,
        *,
        agent: str | None = None,
        state: TaskState | None = None,
        before: TaskRecord | None = None,
        limit: int = 50,
    ) -> Sequence[TaskRecord]:
        """Newest first; with `before` only those that stand after it in such a list."""
        ...

    def calls(self, task_id: str) -> Sequence[RunRecord]:
        """The calls in a task, in the order in which they began."""
        ...

    def tasks_over(self, now: datetime) -> Sequence[tuple[TaskRecord, TaskEnd]]:
        """The open tasks that are to be closed, with what ends them."""
        ...

    def stray_calls(self) -> Sequence[RunRecord]:
        """The calls that go on although their task is closed."""
        ...

    def under_way(self, agent: str | None = None) -> Sequence[RunRecord]:
        """The runs of an agent, or of all, that go on or wait for somebody to agree, calls among them."""
        ...

    def lease(self, lease_id: str) -> LeaseRecord | None:
        """The lease, or None."""
        ...

    def leases(self, query: LeaseFilter) -> Sequence[LeaseRecord]:
        """Newest first."""
        ...

    def leases_of_ended_runs(self, *, dead: Collection[str] = ()) -> Sequence[LeaseRecord]:
        """The open leases of ended runs, newest first; also of the runs that the processes `dead` (ids) drive."""
        ...

    def places(self, now: datetime) -> Places:
        """What is held of connections, by leases that are not over by this time, and the attempts that wait."""
        ...

    def revoking_leases(self, most: int) -> Sequence[LeaseRecord]:
        """What is being taken back: first what was tried in vain most often, then what has taken longest."""
        ...

    def open_lease_counts(self) -> Mapping[LeaseState, int]:
        """How many leases are in each open state, 0 where there is none."""
        ...

    def events(
        self,
        run_id: str,
        *,
        lease_id: str | None = None,
        step: str | None = None,
        kind: str | None = None,
        after: int | None = None,
        limit: int | None = None,
    ) -> Sequence[EventRecord]:
        """In order of their sequence number, from the one `after` this; with a lease, step or kind only those of it."""
        ...

    def positions(self, run_ids: Collection[str]) -> Mapping[str, int]:
        """How many events each of these runs and tasks has."""
        ...

    def exposure(self, since: datetime, until: datetime) -> Sequence[Exposure]:
        """How long the credentials were held that were asked for in this time, by their origin."""
        ...

    def decisions(self, query: DecisionFilter) -> Iterator[DecisionRecord]:
        """In the order in which their runs began, in batches; runs may begin meanwhile."""
        ...

    def verify(self, run_id: str) -> int | None:
        """The sequence number of the first event that breaks the hash chain or is missing, or None."""
        ...

    def verified(self, run_id: str, most: int | None = None) -> tuple[Sequence[EventRecord], int | None]:
        """The first `most` events, and what `verify` says of them where these are all."""
        ...

    def examine(self, run_id: str) -> Examined:
        """Whether chain and tables say of the run what was recorded. Raises UnknownRun."""
        ...

    def runs_with_values(
        self, *, inputs_before: datetime | None, outputs_before: datetime | None
    ) -> Iterator[tuple[str, frozenset[str]]]:
        """The runs and tasks that ended before these times, and which of their values are to be dropped."""
        ...

    def inline_runs(self) -> int:
        """How many runs are of before values lay beside their events: what these hold stays."""
        ...

    def examine_all(self) -> Iterator[Examined]:
        """The same of every run."""
        ...
