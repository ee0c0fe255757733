"""What a page says of evidence: what was dropped after its retention, and whether a history is in the signed log."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC

from orchestrator.ledger.log.reader import StoredCheckpoint
from orchestrator.ledger.types import EventRecord
from orchestrator.server.pages.sources import Sources

DROPPED = "values.dropped"


def dropped_in(events: Iterable[EventRecord]) -> Mapping[str, str]:
    """By `inputs` and `outputs`, when and why they were dropped."""
    found: dict[str, str] = {}
    for event in events:
        values = event.data.get("values")
        if event.kind == DROPPED and isinstance(values, Sequence):
            day = event.time.astimezone(UTC).date().isoformat()
            for each in values:
                found.setdefault(str(each), f"dropped on {day} by {event.data.get('reason') or 'somebody'}")
    return found


def dropped_of(sources: Sources, run_id: str, kinds: Sequence[str]) -> Mapping[str, str]:
    """The same of a run whose row says that values of these kinds were."""
    return dropped_in(sources.reader.events(run_id, kind=DROPPED)) if kinds else {}


@dataclass(frozen=True, slots=True)
class Signed:
    """The newest entry of a run in the log, as the newest checkpoint has it; no entry where there is none yet.

    It is what the ledger says. Whether the signature is good, somebody else finds with the public key.
    """

    checkpoint: StoredCheckpoint
    position: int = -1
    seq: int = 0
    """The entry is of the history up to this event."""
    fits: bool = True
    """Whether that event is the one that was entered."""


def signed(sources: Sources, run_id: str) -> Signed | None:
    """Where a history is in the signed log; None where nothing was ever signed. Three rows, each by an index."""
    checkpoint = sources.log.newest_checkpoint()
    if checkpoint is None:
        return None
    found = sources.log.leaf(run_id, before=checkpoint.size)
    if found is None:
        return Signed(checkpoint)
    position, leaf = found
    events = sources.reader.events(run_id, after=leaf.head.seq - 1, limit=1)
    fits = [(event.seq, event.digest) for event in events] == [(leaf.head.seq, leaf.head.digest)]
    return Signed(checkpoint, position, leaf.head.seq, fits)
