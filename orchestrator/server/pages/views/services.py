"""Schedules, and the processes on this ledger."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta

from orchestrator.ledger.coordination.runners import RunnerRecord
from orchestrator.scheduling.overview import overview
from orchestrator.server.pages.answers import Asked, Page
from orchestrator.server.pages.sources import Sources

SILENT = timedelta(seconds=15)
"""After so long without a sign of life a process is not said to be alive."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process on the ledger: what it says of itself."""

    runner_id: str
    role: str
    host: str
    pid: str
    state: str
    beat_at: datetime | None
    runs: tuple[str, ...]


def list_schedules(sources: Sources, asked: Asked) -> Page:
    """What this process schedules, and what the ledger knows besides."""
    now = sources.clock.now()
    lines = overview(sources.workflows(), sources.schedules.all(), now)
    return Page("schedules.html", {"asked": asked, "lines": lines, "now": now})


def list_workers(sources: Sources, asked: Asked) -> Page:
    """The processes that carry out runs, with the runs that they drive."""
    now = sources.clock.now()
    found = [_process(each, now, tuple(sources.runners.unfinished(each.runner_id))) for each in sources.runners.all()]
    return Page("workers.html", {"asked": asked, "processes": found})


def _process(record: RunnerRecord, now: datetime, runs: tuple[str, ...]) -> Process:
    try:
        known = json.loads(record.process)
    except ValueError:
        known = {}
    said = known if isinstance(known, dict) else {}
    silent = record.beat_at is None or now - record.beat_at > SILENT
    state = "gone" if record.gone else "silent" if silent else "alive"
    role, host, pid = (str(said.get(name, "")) for name in ("role", "host", "pid"))
    return Process(record.runner_id, role, host, pid, state, record.beat_at, runs)
