"""What a caller asks the writer for, each executed inside a transaction."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from orchestrator.ledger.events import AttemptWaits, RunStarted
from orchestrator.ledger.places import Blocked, PlacesWanted
from orchestrator.ledger.storage.chain import Head
from orchestrator.ledger.storage.times import text_to_time
from orchestrator.ledger.types import CallLimits
from orchestrator.ledger.writing.transaction import FIRST_FENCE, Entry, Transaction


class Job(Protocol):
    """A piece of writing that is done or not done as a whole."""

    run_id: str
    head: Head | None
    """The head that it gave the chain, once executed: the proof that it was committed."""

    @property
    def task(self) -> str | None:
        """The task whose chain it adds to: other processes do so at the same time."""
        ...

    @property
    def gates(self) -> Collection[str]:
        """What it counts, so that only one process does at a time."""
        ...

    def execute(self, transaction: Transaction) -> int:
        """Do it and return the run's fence. May raise any OrchestratorError before it has written anything."""
        ...


@dataclass(slots=True)
class BeginRun:
    """Record a new run with its first events."""

    run_id: str
    entries: Sequence[Entry]
    task: str | None = field(default=None, init=False)
    gates: Collection[str] = field(default=(), init=False)
    head: Head | None = field(default=None, init=False)

    def execute(self, transaction: Transaction) -> int:
        """Raises UsageError if the id is taken, and AgentBlocked."""
        self.head = transaction.begin_run(self.run_id, self.entries)
        return FIRST_FENCE


@dataclass(slots=True)
class BeginCall:
    """Record the run that a call of a tool is, if the task still allows it."""

    task: str
    called: Entry
    run_id: str
    started: Entry
    limits: CallLimits
    runner_id: str
    head: Head | None = field(default=None, init=False)

    @property
    def gates(self) -> Collection[str]:
        """That of the agent, where its calls are counted over all its tasks."""
        assert isinstance(self.started.event, RunStarted)
        return () if self.limits.of_agent is None else (f"agent {self.started.event.agent}",)

    def execute(self, transaction: Transaction) -> int:
        """Raises UnknownRun, TaskEnded, BudgetSpent, AgentBlocked, and UsageError if the id is taken."""
        self.head = transaction.begin_call(
            self.task, self.called, self.run_id, self.started, self.limits, self.runner_id
        )
        return FIRST_FENCE


@dataclass(slots=True)
class CloseTask:
    """Close a task, unless it is closed. Repeating it after an unanswered commit finds that it is."""

    run_id: str
    entry: Entry
    head: Head | None = field(default=None, init=False)
    gates: Collection[str] = field(default=(), init=False)

    @property
    def task(self) -> str:
        """The task itself."""
        return self.run_id

    def execute(self, transaction: Transaction) -> int:
        """1 if it is closed by this, else 0. Raises UnknownRun."""
        self.head = transaction.close_task(self.run_id, self.entry)
        return int(self.head is not None)


@dataclass(slots=True)
class Append:
    """Add events to a run under a fence."""

    run_id: str
    fence: int
    entries: Sequence[Entry]
    task: str | None = field(default=None, init=False)
    gates: Collection[str] = field(default=(), init=False)
    head: Head | None = field(default=None, init=False)

    def execute(self, transaction: Transaction) -> int:
        """Raises UnknownRun, FenceLost or IllegalTransition."""
        self.head = transaction.append(self.run_id, self.fence, self.entries)
        return self.fence


@dataclass(slots=True)
class Request:
    """Add the intents of an attempt to its run if it gets its places; else the attempt is in line from now on.

    The `prelude` is added in either case, unless it is in line already: then nothing is written.
    """

    run_id: str
    fence: int
    wanted: PlacesWanted
    prelude: Sequence[Entry]
    intents: Sequence[Entry]
    task: str | None = field(default=None, init=False)
    head: Head | None = field(default=None, init=False)
    blocked: Blocked | None = field(default=None, init=False)
    """What came of it: None where it has its places."""

    @property
    def gates(self) -> Collection[str]:
        """Those of the connections."""
        return [f"connection {name}" for name in self.wanted.leases]

    def execute(self, transaction: Transaction) -> int:
        """Raises UnknownRun, FenceLost or IllegalTransition."""
        wanted, time = self.wanted, self.intents[0].time
        key = (self.run_id, wanted.step, wanted.attempt)
        places = transaction.places(text_to_time(time))
        waits = any(each.key == key for each in places.line)
        self.head, self.blocked = None, places.blocked(key, wanted, text_to_time(time))
        if self.blocked is None:
            self.head = transaction.append(self.run_id, self.fence, [*self.prelude, *self.intents])
            if waits or wanted.known:
                transaction.leave_line(*key)
        elif not waits:
            told = [] if wanted.known else [self._waits(self.blocked, time)]
            self.head = transaction.append(self.run_id, self.fence, [*self.prelude, *told])
            transaction.enter_line(self.run_id, wanted, time)
        return self.fence

    def _waits(self, blocked: Blocked, time: str) -> Entry:
        wanted = self.wanted
        event = AttemptWaits(
            step=wanted.step, attempt=wanted.attempt, connection=blocked.connection, reason=blocked.reason
        )
        self.blocked = replace(blocked, recorded=event)
        return Entry.of(time, event)


@dataclass(slots=True)
class LeaveLine:
    """An attempt waits for places no longer. Repeating it does no harm."""

    run_id: str
    step: str
    attempt: int
    task: str | None = field(default=None, init=False)
    gates: Collection[str] = field(default=(), init=False)
    head: Head | None = field(default=None, init=False)

    def execute(self, transaction: Transaction) -> int:
        """0: nothing is said of its run."""
        transaction.leave_line(self.run_id, self.step, self.attempt)
        return 0


@dataclass(slots=True)
class Resume:
    """Make a run that was interrupted, or waits, run again."""

    run_id: str
    runner_id: str
    entry: Entry
    task: str | None = field(default=None, init=False)
    gates: Collection[str] = field(default=(), init=False)
    head: Head | None = field(default=None, init=False)

    def execute(self, transaction: Transaction) -> int:
        """Raises UnknownRun, and FenceLost where it goes on by now."""
        view = transaction.resume(self.run_id, self.runner_id, self.entry)
        self.head = view.head
        return view.fence


@dataclass(slots=True)
class TakeOver:
    """Repeating it after an unanswered commit raises the fence twice, which does no harm."""

    run_id: str
    ended: bool = False
    task: str | None = field(default=None, init=False)
    gates: Collection[str] = field(default=(), init=False)
    head: Head | None = field(default=None, init=False)

    def execute(self, transaction: Transaction) -> int:
        """Raises UnknownRun."""
        return transaction.take_over(self.run_id, ended=self.ended)


@dataclass(slots=True)
class DropValues:
    """Drop values of a run that has ended. Repeating it after an unanswered commit finds that it is done."""

    run_id: str
    entry: Entry
    task: str | None = field(default=None, init=False)
    gates: Collection[str] = field(default=(), init=False)
    head: Head | None = field(default=None, init=False)

    def execute(self, transaction: Transaction) -> int:
        """1 if they are dropped by this, 0 where the run goes on. Raises UnknownRun."""
        self.head = transaction.drop_values(self.run_id, self.entry)
        return 0 if self.head is None else 1
