"""The statements on DBOS's own tables for which DBOS 3.4 has no function, or none that is guarded as we need it.

Each changes a row only while it is as it was seen. They lean on how DBOS is made inside: the requirement stays below
3.5, and the tests hold each statement against DBOS itself.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from sqlalchemy import Connection, Row, bindparam, text

from orchestrator.queue.lanes import Limits
from orchestrator.queue.names import SCHEMA, WORKFLOW
from orchestrator.queue.rows import known_encoding

_NOW = "(extract(epoch FROM now()) * 1000)::bigint"


class QueueState(StrEnum):
    """Where a run stands that was put into the queue."""

    WAITING = "waiting"
    """For a worker that has room for it."""
    DELAYED = "delayed"
    """For its time: it was put in with a delay, or could not be begun and is tried again."""
    APPROVAL = "approval"
    """For somebody to agree: it takes nobody's place."""
    RUNNING = "running"
    """A worker has it."""
    DEAD = "dead"
    """It was tried so often that nobody tries it any more."""


STATES = {
    "ENQUEUED": QueueState.WAITING,
    "DELAYED": QueueState.DELAYED,
    "PENDING": QueueState.RUNNING,
    "MAX_RECOVERY_ATTEMPTS_EXCEEDED": QueueState.DEAD,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class InQueue:
    """A run in the queue. Times in UTC; `until` is when a delay is over; `worker` is who has it, or had it last."""

    run_id: str
    workflow: str
    state: QueueState
    queued_at: datetime
    priority: int
    lane: str
    worker: str
    claims: int
    until: datetime | None
    trigger: str
    reason: str
    retry_of: str


@dataclass(frozen=True, slots=True)
class Claimed:
    """A run that a worker has, as DBOS says: not only its id, since others write these tables, too."""

    run_id: str
    worker: str
    lane: str
    workflow: str
    status: str
    is_run: bool
    """Whether it is a row as we write them. Any other one DBOS claims and cannot carry out, and it keeps its place."""


_LIST = f"""
SELECT w.workflow_uuid, w.status, coalesce(w.queue_partition_key, q.workflow, r.workflow, '') AS workflow, w.priority,
  coalesce(w.queue_name, '') AS lane, coalesce(w.executor_id, '') AS worker, w.created_at, w.delay_until_epoch_ms,
  coalesce(w.recovery_attempts, 0) AS claims, coalesce(q.trigger, r.trigger, '') AS trigger,
  coalesce(q.reason, '') AS reason, coalesce(q.retry_of, '') AS retry_of, r.state AS run_state
FROM {SCHEMA}.workflow_status w
LEFT JOIN queued_run q ON q.run_id = w.workflow_uuid
LEFT JOIN run r ON r.run_id = w.workflow_uuid
WHERE w.name = :name AND w.status IN :statuses
  AND (CAST(:workflow AS text) IS NULL OR coalesce(w.queue_partition_key, q.workflow, r.workflow) = :workflow)
ORDER BY w.created_at, w.workflow_uuid LIMIT :most
"""  # noqa: S608


def in_queue(
    connection: Connection, states: Collection[QueueState], workflow: str | None, most: int
) -> Sequence[InQueue]:
    """The runs in these states, those first that were put in first."""
    wanted = {QueueState.DELAYED if state is QueueState.APPROVAL else state for state in states}
    statuses = [status for status, state in STATES.items() if state in wanted]
    query = text(_LIST).bindparams(bindparam("statuses", expanding=True))
    # What waits for somebody to agree is not told apart by DBOS: more is read than is asked for, and then chosen.
    given = {"name": WORKFLOW, "statuses": statuses, "workflow": workflow, "most": most}
    found = (_in_queue(row) for row in connection.execute(query, given))
    return [each for each in found if each.state in states]


def counts(connection: Connection) -> dict[QueueState, int]:
    """How many runs are in each state; those that wait for somebody to agree are among the delayed ones."""
    query = text(f"SELECT status, count(*) FROM {SCHEMA}.workflow_status WHERE name = :name GROUP BY status")  # noqa: S608
    found = {str(row[0]): int(row[1]) for row in connection.execute(query, {"name": WORKFLOW})}
    return {state: found.get(status, 0) for status, state in STATES.items()}


def waits_since(connection: Connection) -> datetime | None:
    """When the run was put in that waits longest for a worker."""
    query = text(f"SELECT min(created_at) FROM {SCHEMA}.workflow_status WHERE status = 'ENQUEUED' AND name = :name")  # noqa: S608
    found = connection.execute(query, {"name": WORKFLOW}).scalar()
    return None if found is None else _moment(int(found))


def hold(
    connection: Connection, run_id: str, worker: str, *, lane: str | None, workflow: str, until: datetime | None
) -> bool:
    """Give a run back that this worker has: it waits again, from `until` on, where that is given, and holds no place.

    Without a lane it stays in its own. False where the worker has it no more.
    """
    statement = f"""
        UPDATE {SCHEMA}.workflow_status SET status = :status, delay_until_epoch_ms = :until, owner_xid = NULL,
          started_at_epoch_ms = NULL, rate_limited = false, queue_partition_key = :workflow,
          queue_name = coalesce(CAST(:lane AS text), queue_name, :plain),
          updated_at = {_NOW}
        WHERE workflow_uuid = :run_id AND status = 'PENDING' AND executor_id = :worker
    """  # noqa: S608
    given = {
        "run_id": run_id,
        "worker": worker,
        "lane": lane,
        "plain": Limits().lane,
        "workflow": workflow,
        "status": "ENQUEUED" if until is None else "DELAYED",
        "until": None if until is None else round(until.timestamp() * 1000),
    }
    return connection.execute(text(statement), given).rowcount == 1


def bury(connection: Connection, run_id: str, worker: str) -> bool:
    """Say of a run that this worker has that nobody tries it any more."""
    return _end(connection, run_id, worker, "MAX_RECOVERY_ATTEMPTS_EXCEEDED")


def drop(connection: Connection, run_id: str, worker: str) -> bool:
    """Cancel what this worker has and what is no run; an entry that nobody has claimed has the empty name for one."""
    return _end(connection, run_id, worker, "CANCELLED")


def _end(connection: Connection, run_id: str, worker: str, status: str) -> bool:
    statement = f"""
        UPDATE {SCHEMA}.workflow_status SET status = :status, owner_xid = NULL, queue_name = NULL,
          started_at_epoch_ms = NULL, updated_at = {_NOW}, completed_at = {_NOW}
        WHERE workflow_uuid = :run_id AND status = 'PENDING' AND coalesce(executor_id, '') = :worker
    """  # noqa: S608
    given = {"run_id": run_id, "worker": worker, "status": status}
    return connection.execute(text(statement), given).rowcount == 1


def take_out(connection: Connection, run_id: str) -> bool:
    """Cancel a run that no worker has, and that has not begun."""
    statement = f"""
        UPDATE {SCHEMA}.workflow_status w SET status = 'CANCELLED', owner_xid = NULL, queue_name = NULL,
          updated_at = {_NOW}, completed_at = {_NOW}
        WHERE workflow_uuid = :run_id AND status IN ('ENQUEUED', 'DELAYED', 'MAX_RECOVERY_ATTEMPTS_EXCEEDED')
          AND NOT EXISTS (SELECT FROM run r WHERE r.run_id = w.workflow_uuid AND r.state IN ('running', 'waiting'))
    """  # noqa: S608
    return connection.execute(text(statement), {"run_id": run_id}).rowcount == 1


def claimed(connection: Connection) -> Sequence[Claimed]:
    """What workers have, dead ones and what is no run included."""
    query = text(f"{_CLAIMED} WHERE status = 'PENDING'")
    return [_claimed(row) for row in connection.execute(query, {"name": WORKFLOW})]


def of_runs(connection: Connection, run_ids: Collection[str]) -> Sequence[Claimed]:
    """How these stand, whatever their state."""
    query = text(f"{_CLAIMED} WHERE workflow_uuid IN :run_ids").bindparams(bindparam("run_ids", expanding=True))
    return [_claimed(row) for row in connection.execute(query, {"run_ids": list(run_ids), "name": WORKFLOW})]


_CLAIMED = f"""
SELECT workflow_uuid, executor_id, queue_name, queue_partition_key, status,
  name = :name AND class_name IS NULL AND config_name IS NULL AND ({known_encoding()})
    AND executor_id IS NOT NULL AS is_run
FROM {SCHEMA}.workflow_status
"""  # noqa: S608


def not_entered(connection: Connection) -> Sequence[str]:
    """What was asked of the queue and is not in DBOS: put in by a version that had a queue of another kind."""
    query = f"""
        SELECT q.run_id FROM queued_run q
        LEFT JOIN {SCHEMA}.workflow_status w ON w.workflow_uuid = q.run_id WHERE w.workflow_uuid IS NULL LIMIT 1000
    """  # noqa: S608
    return [str(row[0]) for row in connection.execute(text(query))]


def cancelled(connection: Connection) -> Sequence[str]:
    """What was asked of the queue and is cancelled in DBOS, by somebody else than us, who take it out of both."""
    query = f"""
        SELECT q.run_id FROM queued_run q
        JOIN {SCHEMA}.workflow_status w ON w.workflow_uuid = q.run_id WHERE w.status = 'CANCELLED' LIMIT 1000
    """  # noqa: S608
    return [str(row[0]) for row in connection.execute(text(query))]


def ended_before(connection: Connection, moment: datetime) -> Sequence[str]:
    """What DBOS has of runs that came to their end before, dead ones excepted: nothing is read of it any more."""
    query = f"""
        SELECT workflow_uuid FROM {SCHEMA}.workflow_status WHERE name = :name
          AND status IN ('SUCCESS', 'ERROR', 'CANCELLED') AND updated_at < :moment LIMIT 1000
    """  # noqa: S608
    given = {"name": WORKFLOW, "moment": round(moment.timestamp() * 1000)}
    return [str(row[0]) for row in connection.execute(text(query), given)]


def _in_queue(row: Row[tuple[object, ...]]) -> InQueue:
    state = STATES[str(row.status)]
    if state is QueueState.DELAYED and row.run_state == "waiting":
        state = QueueState.APPROVAL
    return InQueue(
        run_id=row.workflow_uuid,
        workflow=row.workflow,
        state=state,
        queued_at=_moment(row.created_at),
        priority=row.priority,
        lane=row.lane,
        worker=row.worker if state in (QueueState.RUNNING, QueueState.DEAD) else "",
        claims=row.claims,
        until=_moment(row.delay_until_epoch_ms) if state in (QueueState.DELAYED, QueueState.APPROVAL) else None,
        trigger=row.trigger,
        reason=row.reason,
        retry_of=row.retry_of,
    )


def _claimed(row: Row[tuple[object, ...]]) -> Claimed:
    run_id, worker, lane, workflow, status = (str(value or "") for value in row[:5])
    return Claimed(run_id, worker, lane, workflow, status, bool(row.is_run))


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
