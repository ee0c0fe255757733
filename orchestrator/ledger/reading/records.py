"""From rows of the tables to the records of `types`."""

from __future__ import annotations

import json
from dataclasses import fields
from datetime import datetime
from operator import itemgetter
from typing import Any

from sqlalchemy import Row, RowMapping

from orchestrator.ledger.lease import LeaseState
from orchestrator.ledger.states import RunState, StepState, TaskState
from orchestrator.ledger.storage.chain import StoredEvent
from orchestrator.ledger.storage.codec import with_values
from orchestrator.ledger.storage.projections import DROPPED
from orchestrator.ledger.storage.tables import lease
from orchestrator.ledger.storage.times import text_to_time
from orchestrator.ledger.types import EventRecord, LeaseRecord, RunRecord, StepRecord, TaskRecord

_LEASE_FIELDS = [field.name for field in fields(LeaseRecord)]
_LEASE_VALUES = itemgetter(*([column.name for column in lease.columns].index(name) for name in _LEASE_FIELDS))
_LEASE_STATES = {state.value: state for state in LeaseState}
_LEASE_TIMES = ("requested_at", "issued_at", "expires_at", "closed_at", "revoking_since", "last_try_at")
_SCOPE, _STATE, *_TIMES = (_LEASE_FIELDS.index(name) for name in ("scope", "state", *_LEASE_TIMES))
_from_json = json.JSONDecoder().decode


def run_record(row: RowMapping) -> RunRecord:
    """A row of the table `run`. Raises ValueError for one that this version did not write."""
    return RunRecord(
        run_id=row["run_id"],
        workflow=row["workflow"],
        digest=row["digest"],
        agent=row["agent"],
        trigger=row["trigger"],
        inputs=json.loads(row["inputs"]),
        state=RunState(row["state"]),
        started_at=text_to_time(row["started_at"]),
        finished_at=_time(row["finished_at"]),
        exit_code=row["exit_code"],
        reason=row["reason"],
        fence=row["fence"],
        task=row["task"],
        steps=tuple(json.loads(row["steps"])),
        retry_of=row["retry_of"],
        dropped=tuple(kind.value for kind, bit in DROPPED.items() if row["dropped"] & bit),
    )


def task_record(row: RowMapping) -> TaskRecord:
    """A row of the table `run` that is a task. Raises ValueError for one that this version did not write."""
    return TaskRecord(
        task_id=row["run_id"],
        workflow=row["workflow"],
        digest=row["digest"],
        agent=row["agent"],
        inputs=json.loads(row["inputs"]),
        tools=tuple(json.loads(row["steps"])),
        state=TaskState(row["state"]),
        opened_at=text_to_time(row["started_at"]),
        closed_at=_time(row["finished_at"]),
        deadline=text_to_time(row["deadline"]),
        idle=row["idle"],
        reason=row["reason"],
    )


def step_record(row: Row[Any]) -> StepRecord:
    """From a whole row of `step`, by place as a lease. Raises ValueError for one that this version did not write."""
    run_id, step, state, attempts, _key, action, started_at, finished_at, reason, outputs = tuple(row)
    return StepRecord(
        run_id,
        step,
        StepState(state),
        attempts,
        action,
        _time(started_at),
        _time(finished_at),
        reason,
        _from_json(outputs),
    )


def lease_record(row: Row[Any]) -> LeaseRecord:
    """From a whole row of `lease`. A list of leases is many of these, so nothing is looked up by name."""
    values: list[Any] = list(_LEASE_VALUES(row))
    values[_SCOPE] = _from_json(values[_SCOPE])
    values[_STATE] = _LEASE_STATES.get(values[_STATE]) or LeaseState(values[_STATE])
    for place in _TIMES:
        if values[place] is not None:
            values[place] = text_to_time(values[place])
    return LeaseRecord(*values)


def event_record(stored: StoredEvent) -> EventRecord:
    """A stored event. Raises ValueError for one that is not what was recorded."""
    run_id, seq, time, kind, text, digest, kept = stored
    data, dropped = with_values(_from_json(text), kept)
    return EventRecord(run_id, seq, text_to_time(time), kind, data, digest, dropped)


def _time(text: str | None) -> datetime | None:
    return None if text is None else text_to_time(text)
