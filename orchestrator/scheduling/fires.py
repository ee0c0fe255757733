"""One fire of a schedule: its nominal time, and when it is due with jitter.

All of it follows from the workflow's name and the nominal time, so that every process finds the same.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta

from orchestrator.ledger.storage.times import time_to_text
from orchestrator.recovery.fire_ids import Occasion
from orchestrator.runs.triggers import TRIGGER_REQUEST, TRIGGER_SCHEDULE
from orchestrator.scheduling.fire_times import next_fire
from orchestrator.workflow.models.workflow import Schedule


@dataclass(frozen=True, slots=True)
class Fire:
    """A run that is to be. `at` is the nominal time (UTC), `due` is `at` with its jitter."""

    workflow: str
    at: datetime
    due: datetime
    trigger: str = TRIGGER_SCHEDULE

    @property
    def occasion(self) -> Occasion:
        """What its run is known by before there is one."""
        return Occasion(self.workflow, self.trigger, self.at)


def scheduled(schedule: Schedule, workflow: str, at: datetime) -> Fire:
    """The fire of a workflow at a nominal time. Jitter never carries it to the next nominal time or past it."""
    if not schedule.jitter:
        return Fire(workflow, at, at)
    following = next_fire(schedule, at)
    span = timedelta(seconds=schedule.jitter)
    return Fire(workflow, at, at + jitter_of(workflow, at, span if following is None else min(span, following - at)))


def requested(workflow: str, at: datetime) -> Fire:
    """The fire that a person asked for at this moment."""
    return Fire(workflow, at, at, TRIGGER_REQUEST)


def jitter_of(workflow: str, at: datetime, span: timedelta) -> timedelta:
    """Between none and `span` (excluded), evenly spread over workflows and times, in whole milliseconds."""
    digest = hashlib.sha256(f"jitter\0{workflow}\0{time_to_text(at)}".encode()).digest()
    return timedelta(milliseconds=int.from_bytes(digest[:8]) % (span // timedelta(milliseconds=1)))
