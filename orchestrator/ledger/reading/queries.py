"""Runs, their steps and their events, as SQL. Every query is answered by an index, which also gives the order."""

from __future__ import annotations

from sqlalchemy import CompoundSelect, Select, or_, select

from orchestrator.ledger.reading.newest_first import Order, Part, newest, unindexed
from orchestrator.ledger.states import ApprovalState, RunState, TaskState
from orchestrator.ledger.storage.tables import (
    BY_ITSELF,
    IS_RUNNING,
    IS_TASK,
    OF_TASK,
    agent_block,
    approval,
    event,
    run,
    step,
)
from orchestrator.ledger.storage.tables import SWEEP_WORKFLOW as SWEEP_WORKFLOW

CUT_OFF = "cut_off"

ORDER = Order(run, "started_at", "run_id")


def run_by_id(run_id: str) -> Select[tuple[object, ...]]:
    """At most one row, by the primary key."""
    return select(run).where(run.c.run_id == run_id)


def recent_runs(workflow: str | None, state: RunState | None, limit: int) -> Select[tuple[object, ...]]:
    """Newest first. Sweeps, and calls in tasks, are only among them where their workflow is named."""
    if workflow is not None:
        states = RunState if state is None else (state,)
        return newest(ORDER, [Part(under={"workflow": workflow, "state": each.value}) for each in states], limit)
    return newest(ORDER, [Part(under={} if state is None else {"state": state.value}, conditions=[BY_ITSELF])], limit)


def recent_tasks(agent: str | None, state: TaskState | None, limit: int) -> Select[tuple[object, ...]]:
    """Newest first."""
    of_agent = {} if agent is None else {"agent": agent}
    states = TaskState if state is None else (state,)
    parts = [Part(under={**of_agent, "state": each.value}, conditions=[IS_TASK]) for each in states]
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


def steps_of(run_id: str) -> Select[tuple[object, ...]]:
    """The steps of a run that have a row, in no order."""
    return select(step).where(step.c.run_id == run_id)


def events_of(run_id: str, kind: str | None = None) -> Select[tuple[object, ...]]:
    """In order of their sequence number; with `kind` only those of it."""
    query = select(event).where(event.c.run_id == run_id).order_by(event.c.seq)
    return query if kind is None else query.where(event.c.kind == kind)
