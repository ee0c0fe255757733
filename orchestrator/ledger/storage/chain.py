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
from typing import NamedTuple

from orchestrator.ledger.storage.codec import with_values

DOMAIN = b"credential-orchestrator:ledger:run:v1\0"


class StoredEvent(NamedTuple):
    """An event as the database holds it, its fields in the order of the table's columns: a history is many of these.

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


def first_break(run_id: str, events: Iterable[StoredEvent], head: Head, *, values: bool = True) -> int | None:
    """The sequence number of the first event, in the order given, that is missing, foreign or changed, or None.

    `values`: also of one beside which there are other values than it has digests of, unless these were read before.
    """
    begin = genesis(run_id)
    last, digest = begin.seq, begin.digest
    for event in events:
        expected = last + 1
        if event.seq != expected or expected > head.seq or not _is_intact(event, digest):
            return expected
        if values and not _has_its_values(event):
            return expected
        last, digest = expected, event.digest
    if last < head.seq:
        return last + 1
    return None if digest == head.digest else head.seq


def _is_intact(event: StoredEvent, previous: str) -> bool:
    """Whether the event's fields give its digest. SQLite stores a value of any type in any column, hence the check."""
    run_id, seq, time, kind, data, digest, _ = event
    if not (type(time) is type(kind) is type(data) is type(digest) is str):
        return False
    return digest == link(previous, run_id=run_id, seq=seq, time=time, kind=kind, data=data)


def _has_its_values(event: StoredEvent) -> bool:
    """Whether what lies beside it is what it has digests of, as far as it was not dropped."""
    if event.kept is None:
        return True
    try:
        with_values(json.loads(event.data), event.kept)
    except (ValueError, TypeError, AttributeError):
        return False
    return True
