"""The hash chain of a run: what makes a changed, removed, reordered or inserted event visible.

Each digest is SHA-256 over the previous event's digest and this event's canonical JSON; the first
event follows a genesis digest made from the run's id. The head (last sequence number and digest)
is kept apart from the events, so that a cut tail is seen too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from orchestrator.ledger.storage.codec import with_values

DOMAIN = b"credential-orchestrator:ledger:run:v1\0"


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event as the database holds it, its fields in the order of the table's columns.

    `data` is canonical JSON, unless somebody changed it.
    """

    run_id: str
    seq: int
    time: str
    kind: str
    data: str
    digest: str
    kept: str | None = None
    """The values of which `data` has digests, as canonical JSON; None where there are none, or none any more."""


@dataclass(frozen=True, slots=True)
class Head:
    """Where a run's chain ends."""

    seq: int
    digest: str


@lru_cache(maxsize=256)
def _quoted(text: str) -> str:
    """As a JSON string; of a run's id and an event's kind many links are made."""
    return json.dumps(text)


def genesis(run_id: str) -> Head:
    """The head of a run without events."""
    return Head(0, hashlib.sha256(DOMAIN + run_id.encode("utf-8", "surrogatepass")).hexdigest())


def link(previous: str, *, run_id: str, seq: int, time: str, kind: str, data: str) -> str:
    """The digest, in hex, of an event that follows `previous`. `data` must be canonical JSON already.

    No other fields give the same text, whatever `data` is: all that follows it is of fixed form, quoted and escaped.
    """
    text = f'{{"data":{data},"kind":{_quoted(kind)},"run":{_quoted(run_id)},"seq":{seq},"time":{json.dumps(time)}}}'
    return hashlib.sha256(bytes.fromhex(previous) + text.encode()).hexdigest()


def first_break(run_id: str, events: Iterable[StoredEvent], head: Head) -> int | None:
    """The sequence number of the first event, in the order given, that is missing, foreign or changed, or None."""
    last = genesis(run_id)
    for event in events:
        expected = last.seq + 1
        if event.seq != expected or expected > head.seq or not _is_intact(event, last.digest):
            return expected
        last = Head(expected, event.digest)
    if last.seq < head.seq:
        return last.seq + 1
    return None if last.digest == head.digest else head.seq


def _is_intact(event: StoredEvent, previous: str) -> bool:
    """Whether the event's fields give its digest. SQLite stores a value of any type in any column, hence the check."""
    fields = (event.time, event.kind, event.data, event.digest)
    return (
        all(isinstance(text, str) for text in fields)
        and event.digest
        == link(previous, run_id=event.run_id, seq=event.seq, time=event.time, kind=event.kind, data=event.data)
        and _has_its_values(event)
    )


def _has_its_values(event: StoredEvent) -> bool:
    """Whether what lies beside it is what it has digests of, as far as it was not dropped."""
    if event.kept is None:
        return True
    try:
        with_values(json.loads(event.data), event.kept)
    except (ValueError, TypeError, AttributeError):
        return False
    return True
