"""From rows of the tables to the records of `types`."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from sqlalchemy import RowMapping

from orchestrator.ledger.events import RunState, StepState
from orchestrator.ledger.lease import LeaseState
from orchestrator.ledger.storage.codec import text_to_time
from orchestrator.ledger.types import EventRecord, LeaseRecord, RunRecord, StepRecord


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
    )


def step_record(row: RowMapping) -> StepRecord:
    """A row of the table `step`. Raises ValueError for one that this version did not write."""
    return StepRecord(
        run_id=row["run_id"],
        step=row["step"],
        state=StepState(row["state"]),
        attempts=row["attempts"],
        action=row["action"],
        started_at=_time(row["started_at"]),
        finished_at=_time(row["finished_at"]),
        reason=row["reason"],
        outputs=json.loads(row["outputs"]),
    )


def lease_record(row: RowMapping) -> LeaseRecord:
    """A row of the table `lease`. Raises ValueError for one that this version did not write."""
    fields: dict[str, Any] = dict(row)
    return LeaseRecord(
        **{
            **fields,
            "scope": json.loads(row["scope"]),
            "state": LeaseState(row["state"]),
            "requested_at": text_to_time(row["requested_at"]),
            "issued_at": _time(row["issued_at"]),
            "expires_at": _time(row["expires_at"]),
            "closed_at": _time(row["closed_at"]),
            "revoking_since": _time(row["revoking_since"]),
            "last_try_at": _time(row["last_try_at"]),
        }
    )


def event_record(row: RowMapping) -> EventRecord:
    """A row of the table `event`. Raises ValueError for one that is no JSON."""
    return EventRecord(
        run_id=row["run_id"],
        seq=row["seq"],
        time=text_to_time(row["time"]),
        kind=row["kind"],
        data=json.loads(row["data"]),
        digest=row["digest"],
    )


def _time(text: str | None) -> datetime | None:
    return None if text is None else text_to_time(text)
