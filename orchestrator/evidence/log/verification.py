"""Whether a ledger is what its signed checkpoints say: from the events up to the root, with the public key alone.

Looked at are each run's chain and the tables that follow from it, each entry of the log against the chain that it
names, each checkpoint against the tree of the entries, and, where these are given, checkpoints that somebody else has
kept. Everything is computed here: no stored hash is believed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orchestrator.errors import EvidenceRejected
from orchestrator.evidence.log.checkpoint import Checkpoint
from orchestrator.evidence.log.note import NoteKey
from orchestrator.evidence.log.time_stamps import stamped_at
from orchestrator.ledger.log.reader import LogBroken, LogReader, Restart, StoredCheckpoint
from orchestrator.ledger.log.tree import Growing, leaf_hash
from orchestrator.ledger.types import LedgerReader

if TYPE_CHECKING:
    from cryptography.x509 import Certificate


@dataclass(frozen=True, slots=True)
class Kept:
    """A checkpoint that was kept elsewhere, and where."""

    where: str
    note: str


@dataclass(slots=True)
class Verified:
    """What was looked at, and what is not as it was signed. Sizes are numbers of entries."""

    origin: str = ""
    runs: int = 0
    entries: int = 0
    checkpoints: int = 0
    kept: int = 0
    stamped: int = 0
    """Checkpoints with a time stamp of an authority that is trusted here."""
    signed: int = 0
    """The size of the newest checkpoint."""
    unsigned: list[str] = field(default_factory=list)
    """Runs that ended since."""
    problems: list[str] = field(default_factory=list)
    restarts: Sequence[Restart] = ()
    """When the log went on under another name, as that is signed under the present one."""
    lost: list[str] = field(default_factory=list)
    """Checkpoints of what the ledger does not have since then."""

    @property
    def unsigned_entries(self) -> int:
        """Entries that the newest checkpoint does not cover."""
        return max(0, self.entries - self.signed)

    @property
    def whole(self) -> bool:
        """Whether everything is as it was signed."""
        return not self.problems

    @property
    def predecessors(self) -> Mapping[str, Restart]:
        """By the names of before, the restart that ended each."""
        return {each.before: each for each in self.restarts}


Opened = tuple[str, Checkpoint]
"""A checkpoint whose signature is verified, and where it is."""

Awaited = dict[int, list[tuple[str, bytes]]]
"""Checkpoints that are held against the tree when it has their size: where each is, and its root."""


def verify(
    reader: LedgerReader,
    store: LogReader,
    keys: Sequence[NoteKey],
    kept: Sequence[Kept] = (),
    tsa: Sequence[Certificate] = (),
    progress: Callable[[str, int], None] = lambda what, number: None,
) -> Verified:
    """Verify a whole ledger, and the time stamps of its checkpoints by the roots in `tsa`.

    `progress` is told what is looked at, and how many of it were. Raises LedgerError.
    """
    found = Verified(origin=store.known_origin() or "")
    if found.origin and found.origin not in {key.name for key in keys}:
        named = ", ".join(sorted({key.name for key in keys})) or "none"
        found.problems.append(f"the log of this ledger is {found.origin}, and the key is of {named}: another ledger")
    opened = [each for each in (_opened(found, kept.where, kept.note, keys) for kept in kept) if each is not None]
    renamed = 0
    for stored in store.checkpoints():
        found.checkpoints += 1
        found.signed = max(found.signed, stored.size)
        where = f"the checkpoint of {stored.size} entries"
        if (known := _opened(found, where, stored.note, keys)) is not None:
            if known[1].size != stored.size:
                found.problems.append(f"{where}: it is one of {known[1].size}")
            if known[1].origin == found.origin:
                renamed = max(renamed, known[1].size)
            opened.append(known)
        if stored.stamp and tsa:
            _look_at_stamp(found, where, stored, tsa)
    found.kept = len(kept)
    found.restarts = [each for each in store.restarts() if each.entry is not None and each.entry < renamed]
    _walk(found, store, _awaited(found, opened), progress)
    for examined in reader.examine_all():
        found.runs += bool(examined.run_id)
        progress("runs", found.runs)
        about = examined.run_id or "(no run)"
        if examined.first_broken_event is not None:
            found.problems.append(f"{about}: the history is broken from event {examined.first_broken_event} on")
        found.problems += [f"{about}: {each}" for each in examined.differences]
    for run in store.not_entered():
        if run.claimed:
            found.problems.append(f"{run.run_id}: it is said to be in the log, and is not")
        else:
            found.unsigned.append(run.run_id)
    return found


def _opened(found: Verified, where: str, note: str, keys: Sequence[NoteKey]) -> Opened | None:
    try:
        return where, Checkpoint.opened(note, keys)
    except EvidenceRejected as error:
        found.problems.append(f"{where}: {error.message}")
        return None


def _awaited(found: Verified, opened: Iterable[Opened]) -> Awaited:
    """What is to be held against the tree: checkpoints of this log, under whatever name it had at their size."""
    awaited: Awaited = defaultdict(list)
    for where, checkpoint in opened:
        ended = found.predecessors.get(checkpoint.origin)
        if checkpoint.origin != found.origin and ended is None:
            found.problems.append(f"{where}: it is of another log, {checkpoint.origin}")
        elif ended is not None and checkpoint.size > ended.size:
            found.lost.append(
                f"{where}: of its {checkpoint.size} entries this ledger has {ended.size}, and goes on from there since "
                f"{ended.at:%Y-%m-%d %H:%M}Z as {ended.log}: {ended.reason} ({ended.by})"
            )
        else:
            awaited[checkpoint.size].append((where, checkpoint.root))
    return awaited


def _look_at_stamp(found: Verified, where: str, stored: StoredCheckpoint, tsa: Sequence[Certificate]) -> None:
    try:
        stamped_at(stored.stamp, stored.note, tsa)
    except EvidenceRejected as error:
        found.problems.append(f"{where}: {error.message}")
    else:
        found.stamped += 1


def _walk(
    found: Verified,
    store: LogReader,
    awaited: Awaited,
    progress: Callable[[str, int], None],
) -> None:
    """Make the tree anew from the entries, and hold everything against it that is signed or stored of it."""
    tree, nodes = Growing(), _nodes(found, store)
    _compare(found, tree, awaited)
    try:
        for entry in store.entries():
            leaf = entry.leaf
            stored = tree.add(leaf_hash(leaf.data()))
            _compare(found, tree, awaited)
            for level, position, root in stored:
                if nodes.pop((level, position), None) != root:
                    found.problems.append(f"the stored hash of the entries before {tree.size} is not theirs")
            if not entry.has_run and entry.digest is None:
                found.problems.append(f"{leaf.run_id}: it was logged with {leaf.head.seq} events, and is gone")
            elif entry.digest != leaf.head.digest:
                found.problems.append(f"{leaf.run_id}: its history up to event {leaf.head.seq} is not what was logged")
            progress("entries", tree.size)
    except LogBroken as error:
        found.problems.append(error.message)
    found.entries = tree.size
    for size, late in sorted(awaited.items()):
        for where, _ in late:
            found.problems.append(
                f"{where}: the log had {size} entries then, and has {tree.size} now: "
                "it was set back, or entries were removed"
            )
    for level, position in nodes:
        found.problems.append(f"there is a stored hash of entries that are not there ({level}, {position})")


def _compare(found: Verified, tree: Growing, awaited: Awaited) -> None:
    here = awaited.pop(tree.size, ())
    if not here:
        return
    root = tree.root
    for where, signed in here:
        if signed != root:
            found.problems.append(f"{where}: the first {tree.size} entries of the log are not those that were signed")


def _nodes(found: Verified, store: LogReader) -> dict[tuple[int, int], bytes]:
    try:
        return {(level, position): node for level, position, node in store.nodes()}
    except LogBroken as error:
        found.problems.append(error.message)
        return {}
