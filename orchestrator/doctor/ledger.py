"""The ledger: there, of this version, writable, whole, and with room to grow."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from orchestrator.doctor.findings import Finding, fault, fault_of, fine, warning
from orchestrator.errors import ExitCode, OrchestratorError
from orchestrator.ledger.location import locate
from orchestrator.ledger.opening import open_examiner

AREA = "ledger"

_RUNS = 20
"""How many of the newest runs are verified; `runs verify` looks at all."""

_LITTLE, _TOO_LITTLE = 500 * 2**20, 20 * 2**20
"""Bytes that are free where the file is."""


async def ledger(url: str) -> list[Finding]:
    """What can be seen of the ledger; nothing is made, upgraded or written."""
    return await asyncio.to_thread(_look, url)


def _look(url: str) -> list[Finding]:
    try:
        location = locate(url)
    except OrchestratorError as error:
        return [fault_of(AREA, error)]
    if location.path is not None and not location.path.exists():
        return [_to_be_made(location.path)]
    room = [] if location.path is None else list(_room(location.path))
    try:
        with open_examiner(url) as (reader, writable):
            writable()
            broken = [run for each in reader.runs(limit=_RUNS) if not reader.examine(run := each.run_id).whole]
    except OrchestratorError as error:
        return [fault_of(AREA, error), *room]
    if broken:
        return [
            fault(
                AREA,
                f"the {location.label} is not whole: {', '.join(broken)}",
                "somebody has changed it: `orchestrator runs verify` tells which events; restore it from a backup",
            ),
            *room,
        ]
    return [fine(AREA, f"the {location.label} can be written, and its newest runs are whole"), *room]


def _to_be_made(path: Path) -> Finding:
    folder = next(each for each in path.parents if each.exists())
    if not os.access(folder, os.W_OK | os.X_OK):
        return fault(
            AREA,
            f"the ledger file {path} cannot be made: {folder} is not writable",
            "say with ORCHESTRATOR_LEDGER_URL where the history is to be kept",
            ExitCode.UNREACHABLE,
        )
    return fine(AREA, f"the ledger file {path} is made by the first run")


def _room(path: Path) -> Iterator[Finding]:
    free = shutil.disk_usage(path.parent).free
    told = f"{free // 2**20} MiB are free where the ledger is"
    if free < _TOO_LITTLE:
        yield fault(AREA, told, "free disk space: nothing is issued that cannot be recorded", ExitCode.UNREACHABLE)
    elif free < _LITTLE:
        yield warning(AREA, told, "free disk space: nothing is issued that cannot be recorded")
