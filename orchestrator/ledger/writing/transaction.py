"""What one database transaction of the writer does: fences, chains, projections, few statements.

Events and rows are collected and written together at the end (`flush`), so that a batch of many
appends costs as many statements as one. Only the head of each chain moves at once, since its
UPDATE is also the check of the fence.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.engine.interfaces import DBAPICursor

from orchestrator.errors import AgentBlocked, FenceLost, IllegalTransition, LedgerError, RunExists, UnknownRun
from orchestrator.ledger.events import Event, RunStarted, ValuesDropped
from orchestrator.ledger.places import Places, PlacesWanted
from orchestrator.ledger.states import RESUMABLE, TaskState
from orchestrator.ledger.storage.budgets import check_agent, check_call
from orchestrator.ledger.storage.chain import Head, genesis, link
from orchestrator.ledger.storage.codec import KEPT_BESIDE, ValueKind, event_to_text
from orchestrator.ledger.storage.places import moments, places_of
from orchestrator.ledger.storage.projections import Row, RunRows, Stored, project
from orchestrator.ledger.task_events import TaskClosed, TaskOpened
from orchestrator.ledger.types import CallLimits
from orchestrator.ledger.writing.statements import Statements

FIRST_FENCE = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """An event on its way into the ledger, with its time, its canonical JSON and that of the values beside it."""

    time: str
    event: Event
    data: str
    kept: str | None = None

    @classmethod
    def of(cls, time: str, event: Event) -> Entry:
        """Raises LedgerError where a value is not JSON."""
        return cls(time, event, *event_to_text(event))


@dataclass(slots=True)
class RunView:
    """What the writer knows of a run: as of its head, and only while fence and head are unchanged."""

    fence: int
    head: Head
    rows: RunRows


Views = MutableMapping[str, RunView]
Pipeline = AbstractContextManager[object]


class Transaction:
    """One transaction, over a driver's cursor. `views` is changed along; if it is not committed, drop them.

    `pipeline` makes a context in which statements are sent without waiting for each one's answer.
    """

    def __init__(
        self, cursor: DBAPICursor, statements: Statements, views: Views, pipeline: Callable[[], Pipeline] = nullcontext
    ) -> None:
        self._cursor = cursor
        self._sql = statements
        self._views = views
        self._pipeline = pipeline
        self._written: dict[str, list[Row]] = {}

    def begin_run(self, run_id: str, entries: Sequence[Entry]) -> Head:
        """Insert the run, or task, with its first events. Raises AgentBlocked, or UsageError if the id is taken."""
        first = entries[0]
        assert isinstance(first.event, RunStarted | TaskOpened)
        assert isinstance(first.event, RunStarted) or first.event.task == run_id
        self._check_agent(first.event.agent, first.time)
        rows = project(RunRows(), ((entry.time, entry.event) for entry in entries))
        records, head = _chained(run_id, genesis(run_id), entries)
        chain: Row = {"fence": FIRST_FENCE, "seq": head.seq, "head": head.digest, "logged": 0, "inline": 0}
        row: Row = {"run_id": run_id, **chain, **rows.run}
        if self._execute(self._sql.insert_run, row) != 1:
            if isinstance(first.event, RunStarted) and first.event.retry_of:
                raise RunExists(f"run {run_id} is in the ledger already, or {first.event.retry_of} has been retried")
            raise RunExists(f"run {run_id} is in the ledger already", hint="Begin a run under a new id.")
        self._views[run_id] = RunView(FIRST_FENCE, head, rows)
        self._collect(run_id, RunRows(), RunRows(steps=rows.steps, leases=rows.leases), records)
        return head

    def lock(self, run_ids: Collection[str], gates: Collection[str]) -> None:
        """Keep others from changing these tasks, and from counting at these gates, until the end of the transaction.

        All in one order, so that nobody waits in a circle.
        """
        if gates or len(run_ids) > 1:
            for run_id in sorted(run_ids):
                self._cursor.execute(self._sql.load_run, {"run_id": run_id})
                self._cursor.fetchall()
        for name in sorted(gates):
            self._cursor.execute(self._sql.make_gate, {"name": name})
            self._cursor.execute(self._sql.lock_gate, {"name": name})
            self._cursor.fetchall()

    def places(self, now: datetime) -> Places:
        """What is held of connections, and who waits. It is exact, and stays so, where their gates are locked."""
        self.flush()
        self._cursor.execute(self._sql.places_held, moments(now))
        held = self._fetch()
        self._cursor.execute(self._sql.waiters)
        return places_of(held, self._fetch())

    def enter_line(self, run_id: str, wanted: PlacesWanted, since: str) -> None:
        """Put an attempt at the end of the line. The gates of its connections are locked.

        It may be there, and not count, where its process was taken for dead.
        """
        attempt: Row = {"run_id": run_id, "step": wanted.step, "attempt": wanted.attempt}
        self._execute(self._sql.leave_line, attempt)
        self._cursor.execute(self._sql.next_ticket)
        ((ticket,),) = self._cursor.fetchall()
        place: Row = {"ticket": ticket, "runner_id": wanted.runner_id, "since": since}
        for name, leases in wanted.leases.items():
            wish: Row = {"connection": name, "leases": leases, "most": wanted.limits[name]}
            self._execute(self._sql.enter_line, {**attempt, **place, **wish})

    def leave_line(self, run_id: str, step: str, attempt: int) -> None:
        """Take an attempt out of the line, after what is added to runs: taking a run over locks both so, too."""
        self._later(self._sql.leave_line, [{"run_id": run_id, "step": step, "attempt": attempt}])

    def begin_call(
        self, task_id: str, called: Entry, run_id: str, started: Entry, limits: CallLimits, runner_id: str
    ) -> Head:
        """Begin the run that a call is, driven by that process, and say so in the chain of its task.

        The new head is the run's.

        Raises UnknownRun, TaskEnded, BudgetSpent or AgentBlocked, and UsageError if the id is taken.
        """
        assert isinstance(started.event, RunStarted)
        task = self._load_task(task_id)
        if limits.of_agent is not None:
            check_agent(started.event.agent, self._count(self._sql.open_calls, started.event.agent), limits.of_agent)
        self._cursor.execute(self._sql.count_calls, {"run_id": task_id})
        check_call(task_id, task.rows.run, self._fetch(), limits, tool=started.event.steps[0], now=started.time)
        head = self.begin_run(run_id, [started])
        self._execute(self._sql.own_run, {"run_id": run_id, "runner_id": runner_id})
        self._extend_locked(task_id, task, [called])
        return head

    def close_task(self, task_id: str, entry: Entry) -> Head | None:
        """Close the task; None if it is closed already. Raises UnknownRun."""
        assert isinstance(entry.event, TaskClosed)
        task = self._load_task(task_id)
        if task.rows.run["state"] != TaskState.OPEN.value:
            return None
        return self._extend_locked(task_id, task, [entry])

    def append(self, run_id: str, fence: int, entries: Sequence[Entry]) -> Head:
        """Add the events to the run's chain and return its new head.

        Raises UnknownRun, FenceLost or IllegalTransition before anything is written.
        """
        cached = self._views.get(run_id)
        if cached is not None and cached.fence == fence:
            try:
                if self._extend(run_id, cached, entries):
                    return cached.head
            except IllegalTransition:
                pass  # decided below, by what the database says
        view = self._load(run_id)
        if view.fence != fence:
            raise FenceLost(
                f"run {run_id} was taken over: fence {fence} is no longer valid",
                hint="Stop this process; the one that took over closes the run's leases.",
            )
        return self._extend_locked(run_id, view, entries)

    def take_over(self, run_id: str, *, ended: bool = False) -> int:
        """Make every fence given out before invalid and return the new one.

        Raises UnknownRun, and with `ended` FenceLost where the run is running.
        """
        self.flush()
        statement = self._sql.raise_fence_of_ended if ended else self._sql.raise_fence
        if self._execute(statement, {"run_id": run_id}) != 1:
            self._load(run_id)
            raise FenceLost(f"run {run_id} goes on", hint="Whoever drives it closes its leases.")
        self._execute(self._sql.leave_line_of_run, {"run_id": run_id})
        return self._load(run_id).fence

    def resume(self, run_id: str, runner_id: str, entry: Entry) -> RunView:
        """Make a run that nobody drives run again, with this event, driven by that process: for one caller only.

        Raises UnknownRun, AgentBlocked, and FenceLost where it goes on by now, or has ended.
        """
        view = self._load(run_id)
        if view.rows.run["state"] not in RESUMABLE:
            raise FenceLost(f"run {run_id} goes on by now, or has ended", hint=f"see `orchestrator runs show {run_id}`")
        self._check_agent(str(view.rows.run["agent"]), entry.time)
        self._execute(self._sql.raise_fence, {"run_id": run_id})
        self._execute(self._sql.leave_line_of_run, {"run_id": run_id})
        view.fence += 1
        self._extend_locked(run_id, view, [entry])
        self._execute(self._sql.own_run, {"run_id": run_id, "runner_id": runner_id})
        return view

    def drop_values(self, run_id: str, entry: Entry) -> Head | None:
        """Drop values of a run or task that has ended for good, and say so in its chain; None where it has not.

        What an event says of them stays: their digests. Raises UnknownRun.
        """
        assert isinstance(entry.event, ValuesDropped)
        view = self._load(run_id)
        if view.rows.run["finished_at"] is None or view.rows.run["state"] in RESUMABLE or view.rows.run["inline"]:
            return None
        head = self._extend_locked(run_id, view, [entry])
        self.flush()
        for kind, fields in KEPT_BESIDE.items():
            if not {field.value for field in fields.values()}.isdisjoint(entry.event.values):
                self._execute(self._sql.drop_values, {"run_id": run_id, "kind": kind})
        if ValueKind.INPUTS in entry.event.values:
            self._execute(self._sql.drop_votes, {"run_id": run_id})
            self._execute(self._sql.drop_approvals, {"run_id": run_id})
            self._execute(self._sql.drop_queued, {"run_id": run_id})
        return head

    def holds(self, run_id: str, head: Head) -> bool:
        """Whether the run's chain contains this head: whether a commit that was not answered took place."""
        self._cursor.execute(self._sql.load_run, {"run_id": run_id})  # waits for that commit, if it still runs
        if not self._fetch():
            return False
        self._cursor.execute(self._sql.load_digest, {"run_id": run_id, "seq": head.seq})
        return [row["digest"] for row in self._fetch()] == [head.digest]

    def flush(self) -> None:
        """Write what was collected; a row is inserted before it is updated."""
        written, self._written = self._written, {}
        sql = self._sql
        order = (
            sql.insert_event,
            sql.update_run,
            sql.insert_step,
            sql.update_step,
            sql.insert_lease,
            sql.update_lease,
            sql.leave_line,
            sql.leave_line_of_run,
        )
        if not written:
            return
        with self._pipeline():
            for statement in order:
                rows = written.get(statement, ())
                if len(rows) == 1:
                    self._cursor.execute(statement, rows[0])
                elif rows:
                    self._cursor.executemany(statement, rows)

    def _extend_locked(self, run_id: str, view: RunView, entries: Sequence[Entry]) -> Head:
        if not self._extend(run_id, view, entries):
            raise LedgerError(f"run {run_id} changed while its row was locked", hint="Run `orchestrator runs verify`.")
        return view.head

    def _load_task(self, task_id: str) -> RunView:
        view = self._load(task_id)
        if view.rows.run["task"] != task_id:
            raise _unknown(task_id)
        return view

    def _count(self, statement: str, name: str) -> int:
        self._cursor.execute(statement, {"name": name})
        (row,) = self._cursor.fetchall()
        return int(row[0])

    def _check_agent(self, agent: str, now: str) -> None:
        self._cursor.execute(self._sql.load_block, {"agent": agent})
        for row in self._fetch():
            if row["until"] is None or str(row["until"]) > now:
                raise AgentBlocked(f"the agent `{agent}` is cut off")

    def _extend(self, run_id: str, view: RunView, entries: Sequence[Entry]) -> bool:
        """False if the run's head is not the view's any more."""
        changed = project(view.rows, ((entry.time, entry.event) for entry in entries))
        records, head = _chained(run_id, view.head, entries)
        step: Row = {
            "run_id": run_id,
            "fence": view.fence,
            "seq": view.head.seq,
            "head": view.head.digest,
            "next_seq": head.seq,
            "next_head": head.digest,
        }
        if self._execute(self._sql.advance, step) != 1:
            return False
        self._collect(run_id, view.rows, changed, records)
        view.rows.merge(changed)
        view.head = head
        return True

    def _collect(self, run_id: str, before: RunRows, changed: RunRows, records: Sequence[Row]) -> None:
        sql = self._sql
        self._later(sql.insert_event, records)
        if changed.run:
            self._later(sql.update_run, [{"run_id": run_id, **changed.run}])
            if changed.run["finished_at"] is not None:
                self._later(sql.leave_line_of_run, [{"run_id": run_id}])
        for insert, update, known, rows in (
            (sql.insert_step, sql.update_step, before.steps, changed.steps),
            (sql.insert_lease, sql.update_lease, before.leases, changed.leases),
        ):
            for key, row in rows.items():
                self._later(update if key in known else insert, [{"run_id": run_id, **row}])

    def _later(self, sql: str, rows: Iterable[Row]) -> None:
        self._written.setdefault(sql, []).extend(rows)

    def _load(self, run_id: str) -> RunView:
        """Read the run afresh; from here on nobody else can change it before the end of the transaction."""
        self.flush()
        key = {"run_id": run_id}
        self._cursor.execute(self._sql.load_run, key)
        runs = list(self._fetch())
        if not runs:
            raise _unknown(run_id)
        self._cursor.execute(self._sql.load_steps, key)
        steps: dict[str, Row] = {str(row["step"]): row for row in self._fetch()}
        self._cursor.execute(self._sql.load_leases, key)
        leases: dict[str, Row] = {str(row["lease_id"]): row for row in self._fetch()}
        stored = runs[0]
        fence, seq, head = stored["fence"], stored["seq"], stored["head"]
        assert isinstance(fence, int)
        assert isinstance(seq, int)
        view = RunView(fence, Head(seq, str(head)), RunRows(stored, steps, leases))
        self._views[run_id] = view
        return view

    def _execute(self, sql: str, parameters: Mapping[str, Stored]) -> int:
        self._cursor.execute(sql, parameters)
        return self._cursor.rowcount

    def _fetch(self) -> list[dict[str, Stored]]:
        names = [column[0] for column in self._cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in self._cursor.fetchall()]


def _chained(run_id: str, head: Head, entries: Sequence[Entry]) -> tuple[list[Row], Head]:
    """The rows of the event table for the entries after `head`, and the head after them."""
    rows: list[Row] = []
    for entry in entries:
        seq, time, kind, data = head.seq + 1, entry.time, entry.event.kind, entry.data
        head = Head(seq, link(head.digest, run_id=run_id, seq=seq, time=time, kind=kind, data=data))
        row: Row = {"run_id": run_id, "seq": seq, "time": time, "kind": kind, "data": data, "digest": head.digest}
        rows.append({**row, "kept": entry.kept})
    return rows, head


def _unknown(run_id: str) -> UnknownRun:
    return UnknownRun(f"no run {run_id} is in this ledger", hint="`orchestrator runs list` shows those that are.")
