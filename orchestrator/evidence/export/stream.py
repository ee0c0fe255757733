"""What goes by on its way out: which events, without which values, and how many there were."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

from orchestrator.evidence.export.lease_rows import FINAL_KINDS
from orchestrator.jsontypes import JsonObject, JsonValue
from orchestrator.ledger.events import LeaseRequested
from orchestrator.ledger.reading.history import ChainEvent, Chapter, RunHead
from orchestrator.ledger.storage.codec import KEPT_BESIDE

Passed = tuple[RunHead, ChainEvent]


@dataclass(slots=True)
class Tally:
    """What was given out, for the mark at the end: `read` events of the ledger became so many lines, `written`."""

    selection: JsonObject = field(default_factory=dict)
    read: int = 0
    written: int = 0
    runs: int = 0
    unfinished: int = 0
    """Runs that had not ended when they were read: more events of them may follow."""
    missing: int = 0
    """Events that there should be by the chains of their runs, and are not."""
    first: datetime | None = None
    last: datetime | None = None
    position: tuple[str, int] | None = None
    """The last event that was read: its run and its number there."""
    _of_run: int = 0

    def chapters(self, chapters: Iterable[Chapter]) -> Iterator[Chapter]:
        """The same, counted."""
        for chapter in chapters:
            yield chapter
            for each in chapter.events:
                self.read += 1
                self.first = each.time if self.first is None else min(self.first, each.time)
                self.last = each.time if self.last is None else max(self.last, each.time)
                self.position = (each.run_id, each.seq)
            self._of_run += len(chapter.events)
            if chapter.last:
                self.runs += 1
                self.unfinished += chapter.run.finished_at is None
                self.missing += max(0, chapter.run.events - self._of_run)
                self._of_run = 0

    def mark(self, counted: str) -> dict[str, JsonValue]:
        """The end, as data; `counted` is the name of what was written."""
        return {
            "end": True,
            counted: self.written,
            "ledger_events": self.read,
            "runs": self.runs,
            "unfinished_runs": self.unfinished,
            "missing_events": self.missing,
            "first_time": utc(self.first),
            "last_time": utc(self.last),
            "last_run": self.position[0] if self.position else None,
            "last_seq": self.position[1] if self.position else None,
            "selection": self.selection,
        }


def passed(chapters: Iterable[Chapter], resource: str | None = None) -> Iterator[Passed]:
    """The events one by one; with a resource those of leases alone whose path begins so."""
    wanted: set[str] = set()
    for chapter in chapters:
        for each in chapter.events:
            if resource is None or _is_of(each, resource, wanted):
                yield chapter.run, each
        if chapter.last:
            wanted.clear()


def _is_of(event: ChainEvent, resource: str, wanted: set[str]) -> bool:
    """`wanted` are the open leases of that resource."""
    lease_id = str(event.data.get("lease_id", ""))
    if event.kind == LeaseRequested.kind and str(event.data.get("resource", "")).startswith(resource):
        wanted.add(lease_id)
    known = lease_id in wanted
    if event.kind in FINAL_KINDS:
        wanted.discard(lease_id)
    return known


def content(event: ChainEvent, *, with_values: bool) -> dict[str, JsonValue]:
    """What an event says, with its digest; the values beside it, or the fields that are left out; what was dropped.

    The digest can be computed again from that, but where a ledger of an older version has the values in the event.
    """
    inside = frozenset(name for name in KEPT_BESIDE.get(event.kind, ()) if event.data.get(name))
    data, left_out = event.data, frozenset[str]()
    if not with_values:
        data, left_out = {name: value for name, value in data.items() if name not in inside}, inside | event.kept.keys()
    said: dict[str, JsonValue] = {"data": data, "digest": event.digest}
    if with_values and event.kept:
        said["kept"] = event.kept
    names = {"left_out": left_out, "dropped": event.dropped}
    return {**said, **{name: sorted(fields) for name, fields in names.items() if fields}}


def utc(moment: datetime | None) -> str | None:
    """`2026-03-02T05:00:05.000000Z`."""
    if moment is None:
        return None
    return moment.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


Lines = Callable[[Iterable[Chapter], Tally], Iterator[str]]
"""A format: from the history to the text of a file, piece by piece, the mark of the end as the last."""
