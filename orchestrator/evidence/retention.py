"""Dropping what is personal and no evidence, after its retention: what runs were given, and what their steps gave.

The chains stay as they are, since they hold digests of such values only, and each says what was dropped and why.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from orchestrator.grants.fields import format_duration
from orchestrator.ledger.events import ValuesDropped
from orchestrator.ledger.types import LedgerReader, LedgerWriter


@dataclass(frozen=True, slots=True)
class Retention:
    """How long values are kept after the end of their run, in seconds; None: for good."""

    inputs: int | None = None
    outputs: int | None = None

    @property
    def is_any(self) -> bool:
        """Whether anything is dropped some day."""
        return self.inputs is not None or self.outputs is not None

    def reason(self) -> str:
        """What the chains say."""
        kept = {"inputs": self.inputs, "outputs": self.outputs}
        words = (f"{name} {format_duration(seconds)}" for name, seconds in kept.items() if seconds is not None)
        return f"retention: {', '.join(words)}"

    def limits(self, now: datetime) -> dict[str, datetime | None]:
        """Whatever ended before."""
        return {
            "inputs_before": None if self.inputs is None else now - timedelta(seconds=self.inputs),
            "outputs_before": None if self.outputs is None else now - timedelta(seconds=self.outputs),
        }


KEPT_FOR_GOOD = Retention()


@dataclass(slots=True)
class Pruned:
    """Of how many runs and tasks values were dropped, or would be."""

    runs: int = 0
    inputs: int = 0
    outputs: int = 0


def due(reader: LedgerReader, retention: Retention, now: datetime) -> Pruned:
    """What `prune` would do."""
    found = Pruned()
    for _, kinds in reader.runs_with_values(**retention.limits(now)):
        _count(found, kinds)
    return found


async def prune(
    ledger: LedgerWriter,
    reader: LedgerReader,
    retention: Retention,
    now: datetime,
    progress: Callable[[str, int], None] = lambda what, number: None,
) -> Pruned:
    """Drop what is due. May be cut off, and repeated. Raises LedgerError."""
    found, reason = Pruned(), retention.reason()
    todo = reader.runs_with_values(**retention.limits(now))
    while (following := await asyncio.to_thread(next, todo, None)) is not None:
        run_id, kinds = following
        if await ledger.drop_values(run_id, ValuesDropped(values=tuple(sorted(kinds)), reason=reason)):
            _count(found, kinds)
        progress("runs", found.runs)
    if found.runs:
        await ledger.overwrite_dropped()
    return found


def _count(found: Pruned, kinds: frozenset[str]) -> None:
    found.runs += 1
    found.inputs += "inputs" in kinds
    found.outputs += "outputs" in kinds
