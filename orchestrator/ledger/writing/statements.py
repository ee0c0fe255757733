"""The SQL of the writing side, compiled once for the dialect and run on the driver's own cursor.

SQLAlchemy Core writes it, so that both databases get their own dialect, but does not run it: running
a prepared text costs a fifth of executing a Core statement.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Dialect,
    bindparam,
    delete,
    func,
    insert,
    literal_column,
    null,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql import ClauseElement

from orchestrator.ledger.states import RunState
from orchestrator.ledger.storage.budgets import calls_by_state, open_calls
from orchestrator.ledger.storage.places import places_held, waiters
from orchestrator.ledger.storage.tables import (
    LEASE_CHANGES,
    agent_block,
    approval,
    approval_vote,
    event,
    gate,
    lease,
    lease_waiter,
    queued_run,
    run,
    run_owner,
    step,
)

RUN_CHANGES = ("state", "finished_at", "exit_code", "reason", "inputs", "dropped")
STEP_CHANGES = ("state", "attempts", "step_key", "action", "started_at", "finished_at", "reason", "outputs")


@dataclass(frozen=True, slots=True)
class Statements:
    """Each takes its parameters by name, in the dialect's style; names that it does not use are ignored."""

    begin: str | None
    """How a transaction begins, unless the driver begins it."""
    load_run: str
    """Locks the row on PostgreSQL; on SQLite the transaction has locked everything."""
    load_steps: str
    load_leases: str
    load_digest: str
    insert_run: str
    """Inserts nothing where the id is taken, or the run that it retries has been retried."""
    advance: str
    """Moves the head of a chain, if fence and head are still the ones that the writer knows."""
    load_block: str
    """Whether an agent is cut off."""
    count_calls: str
    """The calls of a task by tool and state: how many, and when the last one began and ended."""
    make_gate: str
    lock_gate: str
    places_held: str
    """How many places of each connection are held."""
    waiters: str
    """Who waits for places, in the order of the line."""
    next_ticket: str
    enter_line: str
    leave_line: str
    """Of one attempt, whatever it waits for."""
    leave_line_of_run: str
    open_calls: str
    """How many calls of an agent go on."""
    raise_fence: str
    raise_fence_of_ended: str
    """The same for a run that is not running."""
    own_run: str
    """Who drives a run from now on; nobody wants it cancelled yet."""
    drop_values: str
    """Of a run's events of one kind."""
    drop_votes: str
    drop_approvals: str
    drop_queued: str
    """What was asked for the steps of a run holds its inputs; who has agreed is in its events."""
    update_run: str
    insert_event: str
    insert_step: str
    update_step: str
    insert_lease: str
    update_lease: str


_compiled: dict[tuple[str, str], Statements] = {}


def compile_statements(dialect: Dialect) -> Statements:
    """The statements as this dialect writes them, compiled once in a process: it takes as long as several commits."""
    key = (dialect.name, dialect.paramstyle)
    if key not in _compiled:
        _compiled[key] = _compile(dialect)
    return _compiled[key]


def _compile(dialect: Dialect) -> Statements:
    def sql(statement: ClauseElement) -> str:
        return str(statement.compile(dialect=dialect))

    key: BindParameter[str] = bindparam("run_id")
    inserting = sqlite.insert if dialect.name == "sqlite" else postgresql.insert
    new_run, new_owner = inserting(run), inserting(run_owner)
    name: BindParameter[str] = bindparam("name")
    driver: BindParameter[str] = bindparam("runner_id")
    this_run = run.c.run_id == key
    zero: ColumnElement[int] = literal_column("0")
    one: ColumnElement[int] = literal_column("1")
    waits = lease_waiter.c.run_id == key
    this_attempt = (lease_waiter.c.step == bindparam("step"), lease_waiter.c.attempt == bindparam("attempt"))
    known_head = (run.c.fence == bindparam("fence"), run.c.seq == bindparam("seq"), run.c.head == bindparam("head"))
    return Statements(
        begin="BEGIN IMMEDIATE" if dialect.name == "sqlite" else None,
        load_run=sql(select(run).where(this_run).with_for_update()),
        load_steps=sql(select(step).where(step.c.run_id == key)),
        load_leases=sql(select(lease).where(lease.c.run_id == key)),
        load_digest=sql(select(event.c.digest).where(event.c.run_id == key, event.c.seq == bindparam("seq"))),
        insert_run=sql(new_run.on_conflict_do_nothing()),
        advance=sql(
            update(run).where(this_run, *known_head).values(seq=bindparam("next_seq"), head=bindparam("next_head"))
        ),
        load_block=sql(select(agent_block.c.until).where(agent_block.c.agent == bindparam("agent"))),
        count_calls=sql(calls_by_state(key)),
        make_gate=sql(inserting(gate).values(name=name).on_conflict_do_nothing()),
        lock_gate=sql(select(gate.c.name).where(gate.c.name == name).with_for_update()),
        places_held=sql(places_held(dialect.name)),
        waiters=sql(waiters()),
        next_ticket=sql(select(func.coalesce(func.max(lease_waiter.c.ticket), zero) + one)),
        enter_line=sql(insert(lease_waiter)),
        leave_line=sql(delete(lease_waiter).where(waits, *this_attempt)),
        leave_line_of_run=sql(delete(lease_waiter).where(waits)),
        open_calls=sql(open_calls(name)),
        raise_fence=sql(update(run).where(this_run).values(fence=run.c.fence + literal_column("1"))),
        raise_fence_of_ended=sql(
            update(run)
            .where(this_run, run.c.state != literal_column(f"'{RunState.RUNNING.value}'"))
            .values(fence=run.c.fence + literal_column("1"))
        ),
        own_run=sql(
            new_owner.values(run_id=key, runner_id=driver, cancel=null()).on_conflict_do_update(
                index_elements=["run_id"], set_={"runner_id": driver, "cancel": null()}
            )
        ),
        drop_values=sql(
            update(event).where(event.c.run_id == key, event.c.kind == bindparam("kind")).values(kept=null())
        ),
        drop_votes=sql(
            delete(approval_vote).where(
                approval_vote.c.approval_id.in_(select(approval.c.approval_id).where(approval.c.run_id == key))
            )
        ),
        drop_approvals=sql(delete(approval).where(approval.c.run_id == key)),
        drop_queued=sql(delete(queued_run).where(queued_run.c.run_id == key)),
        update_run=sql(update(run).where(this_run).values(_bound(RUN_CHANGES))),
        insert_event=sql(insert(event)),
        insert_step=sql(insert(step)),
        update_step=sql(
            update(step).where(step.c.run_id == key, step.c.step == bindparam("step")).values(_bound(STEP_CHANGES))
        ),
        insert_lease=sql(insert(lease)),
        update_lease=sql(update(lease).where(lease.c.lease_id == bindparam("lease_id")).values(_bound(LEASE_CHANGES))),
    )


def _bound(columns: tuple[str, ...]) -> dict[str, object]:
    return {column: bindparam(column) for column in columns}
