"""Runs, their steps and their events, as SQL. Every query is answered by an index, which also gives the order."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    CompoundSelect,
    Integer,
    Select,
    Text,
    and_,
    bindparam,
    false,
    func,
    not_,
    or_,
    select,
    tuple_,
)

from orchestrator.ledger.reading.newest_first import (
    Condition,
    Order,
    Part,
    Statement,
    Value,
    after_prefix,
    newest,
    place,
    placed,
    unindexed,
)
from orchestrator.ledger.states import RESUMABLE, ApprovalState, IdKind, RunState, TaskState
from orchestrator.ledger.storage.codec import ValueKind, canonical_json
from orchestrator.ledger.storage.projections import DROPPED
from orchestrator.ledger.storage.tables import (
    BY_ITSELF,
    HAS_VALUES,
    IS_RETRY,
    IS_RUNNING,
    IS_TASK,
    OF_TASK,
    agent_block,
    approval,
    event,
    lease,
    run,
    step,
)
from orchestrator.ledger.storage.tables import SWEEP_WORKFLOW as SWEEP_WORKFLOW
from orchestrator.ledger.storage.times import time_to_text
from orchestrator.ledger.types import RunFilter, TaskRecord

TRIGGER_PROOF = "prove"
"""The trigger of proofs, which are runs that nobody wanted for what they do."""

TRIGGER_SWEEP, SWEEP_AGENT = "sweep", "orchestrator"
"""What the ledger says started the run of a sweep, and for whom sweeps are made."""

TRIGGER_CALL = "call"
"""What started a run that is a call."""

CUT_OFF = "cut_off"

ORDER = Order(run, "started_at", "run_id")


def run_by_id(run_id: str) -> Select[tuple[object, ...]]:
    """At most one row, by the primary key."""
    return select(run).where(run.c.run_id == run_id)


@dataclass(frozen=True, slots=True)
class Shape:
    """All of a filter but the values: filters of one shape share the statement, since making it is what costs."""

    given: frozenset[str]
    state: RunState | None
    bounds: frozenset[str]
    apart: frozenset[str]
    """What is apart from other runs and asked for, too: calls, sweeps."""
    proofs: bool
    limit: int

    @property
    def states(self) -> Sequence[RunState]:
        """Those that are wanted."""
        return tuple(RunState) if self.state is None else (self.state,)

    def under(self, *names: str) -> Mapping[str, Value]:
        """These columns with the places of their values."""
        return {name: place(name) for name in names}


def recent_runs(wanted: RunFilter) -> Statement:
    """Newest first, out of the index of the filter that leaves least; the others are checked on each row of it."""
    given = {name: value for name in _NAMES if (value := getattr(wanted, name)) is not None}
    bounds = _bounds(wanted)
    call = wanted.everything and wanted.trigger in (None, TRIGGER_CALL)
    sweep = wanted.everything and wanted.trigger in (None, TRIGGER_SWEEP) and wanted.agent in (None, SWEEP_AGENT)
    shape = Shape(
        given=frozenset(given),
        state=wanted.state,
        bounds=frozenset(bounds),
        apart=frozenset(name for name, asked in ((TRIGGER_CALL, call), (TRIGGER_SWEEP, sweep)) if asked),
        proofs=wanted.everything or wanted.trigger is not None,
        limit=wanted.limit,
    )
    return _recent_runs(shape), {**placed(given), **bounds}


_NAMES = ("workflow", "agent", "trigger")


def _bounds(wanted: RunFilter) -> dict[str, str]:
    """Within the times, and after the row that the list went on to."""
    until, key = None if wanted.until is None else time_to_text(wanted.until), None
    if wanted.before is not None and (until is None or time_to_text(wanted.before.started_at) < until):
        until, key = time_to_text(wanted.before.started_at), wanted.before.run_id
    since = None if wanted.since is None else time_to_text(wanted.since)
    bounds = {"since": since, "until": until, "until_key": key}
    return {name: value for name, value in bounds.items() if value is not None}


@lru_cache(maxsize=256)
def _recent_runs(shape: Shape) -> Select[tuple[object, ...]]:
    return newest(ORDER, list(_parts(shape)), shape.limit, seen_in_index=len(shape.given) > 1)


def _parts(shape: Shape) -> Iterator[Part]:
    """A named workflow has an index of all its runs; of the others sweeps and calls are apart, and few ask for them."""
    by = next((name for name in _NAMES if name in shape.given), None)
    hidden = [] if shape.proofs else [_NO_PROOF]
    rest = _equal(shape, *(name for name in _NAMES if name != by))
    if by is not None:
        alone = [] if by == "workflow" else [BY_ITSELF]
        for each in shape.states:
            yield _part(shape, {**shape.under(by), "state": each.value}, [*alone, *hidden, *rest])
    else:
        under = {} if shape.state is None else {"state": shape.state.value}
        yield _part(shape, under, [BY_ITSELF, *hidden])
    if by != "workflow" and TRIGGER_CALL in shape.apart:
        states = [] if shape.state is None else [unindexed(run.c.state) == shape.state.value]
        yield _part(shape, {}, [OF_TASK, _NO_TASK, *_equal(shape, "agent"), *states])
    if by != "workflow" and TRIGGER_SWEEP in shape.apart:
        for each in shape.states:
            yield _part(shape, {"workflow": SWEEP_WORKFLOW, "state": each.value}, [])


_NO_PROOF = unindexed(run.c.trigger) != TRIGGER_PROOF
_NO_TASK = or_(run.c.task.is_(None), run.c.task != run.c.run_id)


def _equal(shape: Shape, *names: str) -> list[Condition]:
    """The conditions that no index answers here."""
    return [unindexed(run.c[name]) == place(name) for name in names if name in shape.given]


def _part(shape: Shape, under: Mapping[str, Value], conditions: Sequence[Condition]) -> Part:
    """A part between the times of the filter."""
    given = {name: bindparam(name, type_=Text()) for name in shape.bounds}
    since, until, key = (given.get(name) for name in ("since", "until", "until_key"))
    return Part(under=under, conditions=conditions, since=since, until=until, until_key=key)


def retries_of(run_ids: Collection[str]) -> Select[tuple[object, ...]]:
    """The runs that go on from these."""
    return select(run).where(IS_RETRY, run.c.retry_of.in_(run_ids))


def ids_beginning(kind: IdKind, beginning: str, limit: int) -> Select[tuple[str]]:
    """The ids of this kind that begin so, by the primary key."""
    column = {IdKind.LEASE: lease.c.lease_id, IdKind.APPROVAL: approval.c.approval_id}.get(kind, run.c.run_id)
    end = after_prefix(beginning)
    found = select(column).where(column >= beginning, *([] if end is None else [column < end]))
    if kind in (IdKind.RUN, IdKind.TASK):
        is_task = run.c.task == run.c.run_id
        found = found.where(is_task if kind is IdKind.TASK else or_(run.c.task.is_(None), not_(is_task)))
    return found.order_by(column).limit(limit)


@cache
def workflow_names() -> Select[tuple[str]]:
    """The first `most` names of workflows, in order: a step in the index of workflows for each, and one statement."""
    names = select(func.min(run.c.workflow).label("workflow")).cte("names", recursive=True)
    following = select(func.min(run.c.workflow)).where(run.c.workflow > names.c.workflow).scalar_subquery()
    names = names.union_all(select(following).where(names.c.workflow.is_not(None)))
    return select(names.c.workflow).where(names.c.workflow.is_not(None)).limit(bindparam("most", type_=Integer))


def recent_tasks(
    agent: str | None, state: TaskState | None, limit: int, before: TaskRecord | None = None
) -> Select[tuple[object, ...]]:
    """Newest first; only those that stand after `before` in such a list."""
    of_agent = {} if agent is None else {"agent": agent}
    states = TaskState if state is None else (state,)
    until, key = (None, None) if before is None else (time_to_text(before.opened_at), before.task_id)
    parts = [
        Part(under={**of_agent, "state": each.value}, conditions=[IS_TASK], until=until, until_key=key)
        for each in states
    ]
    return newest(ORDER, parts, limit)


def calls_of(task_id: str) -> Select[tuple[object, ...]]:
    """The runs that are calls in a task, in the order in which they began."""
    this = (run.c.task == task_id, run.c.run_id != task_id, OF_TASK)
    return select(run).where(*this).order_by(run.c.started_at, run.c.run_id)


def doubtful_tasks(now: str) -> Select[tuple[object, ...]]:
    """The open tasks that are past their deadline, of an agent that is cut off, or may have been idle for too long."""
    still = or_(agent_block.c.until.is_(None), agent_block.c.until > now)
    cut_off = select(agent_block.c.agent).where(agent_block.c.agent == run.c.agent, still).exists()
    doubtful = or_(run.c.deadline <= now, run.c.idle.is_not(None), cut_off)
    these = (IS_TASK, run.c.state == TaskState.OPEN.value, doubtful)
    return select(run, cut_off.label(CUT_OFF)).where(*these).order_by(run.c.deadline)


def stray_calls() -> CompoundSelect[*tuple[object, ...]]:
    """The calls that go on although their task is closed. Out of what runs now, and what waits for an approval."""
    parent = run.alias("parent")
    closed = select(parent.c.run_id).where(parent.c.run_id == run.c.task, parent.c.state == TaskState.CLOSED.value)
    waiting = select(approval.c.run_id).where(approval.c.state == ApprovalState.OPEN.value)
    running = select(run).where(IS_RUNNING, run.c.task.is_not(None), closed.exists())
    waits = select(run).where(
        run.c.run_id.in_(waiting), run.c.task.is_not(None), run.c.state == RunState.WAITING.value, closed.exists()
    )
    return running.union_all(waits)


def running_of(agent: str | None) -> Select[tuple[object, ...]]:
    """The runs of an agent, or of all, that are under way, calls among them and sweeps not; out of all that run now."""
    of_agent = run.c.workflow != SWEEP_WORKFLOW if agent is None else unindexed(run.c.agent) == agent
    return select(run).where(IS_RUNNING, of_agent).order_by(run.c.started_at, run.c.run_id)


def waiting_of(agent: str | None) -> CompoundSelect[*tuple[object, ...]]:
    """The runs of an agent, or of all, that wait for somebody to agree, or have not gone on since somebody has.

    A call of the second kind is found among those of its task.
    """
    asked = select(approval.c.run_id).where(approval.c.state == ApprovalState.OPEN.value)
    waits = [run.c.state == RunState.WAITING.value, *([] if agent is None else [run.c.agent == agent])]
    return select(run).where(run.c.run_id.in_(asked), *waits).union(select(run).where(BY_ITSELF, *waits))


def declared_steps(run_id: str) -> Select[tuple[str]]:
    """The names of the steps that a run declared, as JSON."""
    return select(run.c.steps).where(run.c.run_id == run_id)


def step_names(run_id: str) -> Select[tuple[str]]:
    """The steps of a run that have a row, in no order."""
    return select(step.c.step).where(step.c.run_id == run_id)


def steps_of(run_id: str, names: Collection[str] | None = None) -> Select[tuple[object, ...]]:
    """The steps of a run that have a row, or these of them, in no order."""
    of_run = select(step).where(step.c.run_id == run_id)
    return of_run if names is None else of_run.where(step.c.step.in_(names))


def positions_of(run_ids: Collection[str]) -> Select[tuple[str, int]]:
    """Of runs and tasks, how many events each has."""
    return select(run.c.run_id, run.c.seq).where(run.c.run_id.in_(run_ids))


def events_of(
    run_id: str,
    kind: str | None = None,
    after: int | None = None,
    limit: int | None = None,
    naming: Collection[str] = (),
) -> Statement:
    """In order of their sequence number, from the one after `after`; with `kind` only those of it.

    Without `after` all that are there, also those with numbers that no event has: whoever verifies must see them.
    `naming`: only those whose text has these strings somewhere, so that the others need not be read.
    """
    values = {"of_run": run_id, "of_kind": kind, "after": after, "most": limit}
    named = {f"naming_{number}": _anywhere(canonical_json(each)) for number, each in enumerate(naming)}
    given = {name: value for name, value in {**values, **named}.items() if value is not None}
    return _events(frozenset(given)), given


def _anywhere(text: str) -> str:
    """A pattern of LIKE, of which `/` takes the meaning from the next character."""
    return f"%{re.sub('[/%_]', lambda found: f'/{found[0]}', text)}%"


@lru_cache(maxsize=64)
def _events(given: frozenset[str]) -> Select[tuple[object, ...]]:
    query = select(event).where(event.c.run_id == bindparam("of_run", type_=Text())).order_by(event.c.seq)
    if "of_kind" in given:
        query = query.where(event.c.kind == bindparam("of_kind", type_=Text()))
    if "after" in given:
        query = query.where(event.c.seq > bindparam("after", type_=BigInteger))
    for name in sorted(given):
        if name.startswith("naming_"):
            query = query.where(event.c.data.like(bindparam(name, type_=Text()), escape="/"))
    return query.limit(bindparam("most", type_=Integer)) if "most" in given else query


def runs_with_values(
    inputs_before: str | None, outputs_before: str | None, after: tuple[str, str], limit: int
) -> Select[Any]:
    """Runs and tasks that ended before these times and still have such values, in the order in which they ended."""
    before = {ValueKind.INPUTS: inputs_before, ValueKind.OUTPUTS: outputs_before}
    limits = {kind: moment for kind, moment in before.items() if moment is not None}
    due = (
        and_(run.c.finished_at < moment, run.c.dropped.op("&")(DROPPED[kind]) == 0) for kind, moment in limits.items()
    )
    query = select(run.c.run_id, run.c.finished_at, run.c.dropped).where(HAS_VALUES, or_(false(), *due))
    query = query.where(run.c.finished_at < max(limits.values(), default=""))
    query = query.where(run.c.state.not_in([state.value for state in RESUMABLE]))
    query = query.where(tuple_(run.c.finished_at, run.c.run_id) > after)
    return query.order_by(run.c.finished_at, run.c.run_id).limit(limit)


def inline_runs() -> Select[Any]:
    """How many runs there are of before values lay beside the events."""
    return select(func.count()).select_from(run).where(run.c.inline == 1)
