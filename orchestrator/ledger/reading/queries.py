"""Runs, their steps and their events, as SQL. Every query is answered by an index, which also gives the order."""

from __future__ import annotations

from sqlalchemy import Select, select

from orchestrator.ledger.reading.newest_first import Order, Part, newest
from orchestrator.ledger.states import RunState, TaskState
from orchestrator.ledger.storage.tables import BY_ITSELF, IS_TASK, OF_TASK, event, run, step
from orchestrator.ledger.storage.tables import SWEEP_WORKFLOW as SWEEP_WORKFLOW

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


def steps_of(run_id: str) -> Select[tuple[object, ...]]:
    """The steps of a run that have a row, in no order."""
    return select(step).where(step.c.run_id == run_id)


def events_of(run_id: str, kind: str | None = None) -> Select[tuple[object, ...]]:
    """In order of their sequence number; with `kind` only those of it."""
    query = select(event).where(event.c.run_id == run_id).order_by(event.c.seq)
    return query if kind is None else query.where(event.c.kind == kind)
