"""Who waits for leases of connections whose open leases are limited."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from orchestrator.cli.display.listing import print_line, print_list, width
from orchestrator.cli.display.terminal import local
from orchestrator.ledger.places import Places
from orchestrator.ledger.types import LeaseFilter
from orchestrator.step_names import declared_step


@dataclass(frozen=True, slots=True)
class Waiting:
    """An attempt that waits for leases of a connection. `place` 1 is the next in line; `process` its runner."""

    place: int
    connection: str
    leases: int
    run_id: str
    step: str
    attempt: int
    workflow: str
    agent: str
    task: str | None
    since: datetime
    process: str


def waiting(places: Places, query: LeaseFilter) -> list[Waiting]:
    """Who waits, of those that a filter of leases asks for, by connection and in the order of its line."""
    rows = [
        Waiting(
            place,
            name,
            each.leases[name],
            *each.key,
            each.workflow,
            each.agent,
            each.task,
            each.since,
            each.runner_id,
        )
        for each, name, place in places.in_line()
    ]
    wanted = [row for row in rows if _is_wanted(row, query)]
    return sorted(wanted, key=lambda row: (row.connection, row.place))[: query.limit]


def _is_wanted(row: Waiting, query: LeaseFilter) -> bool:
    equal = (
        (query.run, row.run_id),
        (query.task, row.task),
        (query.workflow, row.workflow),
        (query.agent, row.agent),
        (query.step, declared_step(row.step)),
    )
    in_time = (query.since is None or row.since >= query.since) and (query.until is None or row.since < query.until)
    return in_time and all(wanted in (None, value) for wanted, value in equal)


def print_waiting(found: Sequence[Waiting]) -> None:
    """Print them as a list."""
    if not found:
        print_line("nobody waits")
        return
    columns = ("CONNECTION", "PLACE", "STEP", "SINCE", "RUN", "ATTEMPT", "WORKFLOW", "AGENT", "PROCESS")
    rows = [
        (
            each.connection,
            str(each.place),
            each.step,
            local(each.since),
            each.run_id,
            str(each.attempt),
            each.workflow,
            each.agent,
            each.process,
        )
        for each in found
    ]
    kept = 5 if width() < 160 else len(columns)
    print_list(columns[:kept], [row[:kept] for row in rows], fold=("STEP", "WORKFLOW", "AGENT", "PROCESS"))
