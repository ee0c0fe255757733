"""Lists of runs, for people and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from orchestrator.cli.display.json_output import plain
from orchestrator.cli.display.listing import print_line, print_list, width
from orchestrator.cli.display.terminal import local, took
from orchestrator.jsontypes import JsonObject
from orchestrator.ledger.reading.queries import SWEEP_WORKFLOW, TRIGGER_PROOF

if TYPE_CHECKING:
    from orchestrator.ledger.types import RunRecord

_NARROW = 100
"""Columns below which a list says how long ago a run began instead of when."""

_UNITS = ((604_800, "w"), (86_400, "d"), (3_600, "h"), (60, "m"))


def kind_of(run: RunRecord) -> str:
    """`run`, or what else is recorded in the same way: `call` in a task, `proof`, `sweep`."""
    if run.workflow == SWEEP_WORKFLOW:
        return "sweep"
    if run.task is not None:
        return "call"
    return "proof" if run.trigger == TRIGGER_PROOF else "run"


def runs_json(found: Sequence[RunRecord], retries: Mapping[str, str]) -> list[JsonObject]:
    """As recorded, with what each is and the run that has retried it."""
    rows: list[JsonObject] = []
    for run in found:
        record = plain(run)
        assert isinstance(record, dict)
        rows.append({**record, "kind": kind_of(run), "retried_by": retries.get(run.run_id)})
    return rows


def print_runs(
    found: Sequence[RunRecord], retries: Mapping[str, str], *, kinds: bool, limit: int, now: datetime
) -> None:
    """Newest first; as many columns as fit. `kinds` says what each is."""
    if not found:
        print_line("no runs")
        return
    columns_wide = width()
    narrow = columns_wide < _NARROW
    cells: list[tuple[str, list[str]]] = [
        ("RUN", [run.run_id for run in found]),
        ("WORKFLOW", [run.workflow for run in found]),
        ("STATE", [run.state.value for run in found]),
        ("KIND" if kinds else "TRIGGER", [kind_of(run) if kinds else run.trigger for run in found]),
    ]
    if narrow:
        cells.append(("AGE", [age(now, run.started_at) for run in found]))
    else:
        cells.append(("STARTED", [local(run.started_at) for run in found]))
        cells.append(("TOOK", [took(run.started_at, run.finished_at) for run in found]))
    if columns_wide >= 130:
        if kinds:
            cells.append(("TRIGGER", [run.trigger for run in found]))
        if any(run.retry_of or run.run_id in retries for run in found):
            cells.append(("RETRY", [_retry(run, retries) for run in found]))
        if any(run.task for run in found):
            cells.append(("TASK", [run.task or "-" for run in found]))
    headings = [heading for heading, _ in cells]
    rows = list(zip(*(column for _, column in cells), strict=True))
    print_list(headings, rows, fold=("RUN", "WORKFLOW", "TRIGGER") if narrow else ("WORKFLOW", "TRIGGER", "RETRY"))
    if len(found) == limit:
        print_line(f"the newest {limit}; older ones: --before {found[-1].run_id}", style="dim")


def _retry(run: RunRecord, retries: Mapping[str, str]) -> str:
    of, by = run.retry_of, retries.get(run.run_id)
    return ", ".join(filter(None, (f"of {of}" if of else "", f"by {by}" if by else ""))) or "-"


def age(now: datetime, then: datetime) -> str:
    """How long ago, in the largest unit of which it has two, such as `90m`, `3d`."""
    seconds = max(0, int((now - then).total_seconds()))
    for size, unit in _UNITS:
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
