"""One run for somebody without the ledger: its events, line by line, and the proof that these are what was logged."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from orchestrator.errors import EvidenceRejected, UnknownRun
from orchestrator.evidence.log.proof import Proof
from orchestrator.jsontypes import JsonObject
from orchestrator.ledger.log.leaf import Leaf
from orchestrator.ledger.log.reader import LogReader
from orchestrator.ledger.storage.chain import Head, StoredEvent, first_break
from orchestrator.ledger.storage.codec import canonical_json

EVENTS_SUFFIX = ".events.jsonl"


@dataclass(frozen=True, slots=True)
class RunEvidence:
    """The proof of a run, and those of its events that it is of."""

    leaf: Leaf
    proof: Proof

    @classmethod
    def of(cls, store: LogReader, run_id: str) -> RunEvidence:
        """By the newest checkpoint. Raises UnknownRun where that does not have the run, and LedgerError."""
        newest = store.newest_checkpoint()
        found = None if newest is None else store.leaf(run_id, before=newest.size)
        if newest is None or found is None:
            raise UnknownRun(
                f"no signed checkpoint of this ledger has {run_id}",
                hint="a run is logged when it has ended: `orchestrator history checkpoint` signs what has",
            )
        position, leaf = found
        proof = Proof(position, store.inclusion(position, newest.size), newest.note, leaf.data())
        return cls(leaf, proof)


def event_lines(events: Iterable[StoredEvent], *, values: bool) -> Iterator[str]:
    """Events as canonical JSON lines; with the values beside them on demand."""
    return map(canonical_json, event_documents(events, values=values))


def event_documents(events: Iterable[StoredEvent], *, values: bool) -> Iterator[JsonObject]:
    """The same as JSON objects."""
    for event in events:
        line: JsonObject = {
            "data": json.loads(event.data),
            "digest": event.digest,
            "kind": event.kind,
            "run": event.run_id,
            "seq": event.seq,
            "time": event.time,
        }
        yield {**line, "kept": json.loads(event.kept)} if values and event.kept else line


def verified_events(lines: Iterable[str], leaf: Leaf) -> Sequence[StoredEvent]:
    """The events of such lines, which are exactly those that the proven entry is of. Raises EvidenceRejected."""
    try:
        said = [json.loads(line) for line in lines if line.strip()]
        events = [
            StoredEvent(
                str(each["run"]),
                each["seq"],
                str(each["time"]),
                str(each["kind"]),
                canonical_json(each["data"]),
                str(each["digest"]),
                canonical_json(each["kept"]) if "kept" in each else None,
            )
            for each in said
        ]
    except (ValueError, KeyError, TypeError):
        raise EvidenceRejected("these are no events of a run: a line is not what `history prove` writes") from None
    if foreign := next((each.run_id for each in events if each.run_id != leaf.run_id), None):
        raise EvidenceRejected(f"the proof is of {leaf.run_id}, and there is an event of {foreign[:200]}")
    broken = first_break(leaf.run_id, events, Head(leaf.head.seq, leaf.head.digest))
    if broken is not None:
        raise EvidenceRejected(f"{leaf.run_id}: the events are not those that were logged, from event {broken} on")
    return events
