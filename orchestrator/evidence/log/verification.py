"""Whether a ledger is what its signed checkpoints say: from the events up to the root, with the public key alone.

Looked at are each run's chain and the tables that follow from it, each entry of the log against the chain that it
names, each checkpoint against the tree of the entries, and, where these are given, checkpoints that somebody else has
kept. Everything is computed here: no stored hash is believed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orchestrator.errors import EvidenceRejected
from orchestrator.evidence.log.checkpoint import Checkpoint
from orchestrator.evidence.log.note import NoteKey
from orchestrator.evidence.log.time_stamps import stamped_at
from orchestrator.ledger.log.reader import LogBroken, LogReader, StoredCheckpoint
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

    @property
    def unsigned_entries(self) -> int:
        """Entries that the newest checkpoint does not cover."""
        return max(0, self.entries - self.signed)

    @property
    def whole(self) -> bool:
        """Whether everything is as it was signed."""
        return not self.problems


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
    awaited: Awaited = defaultdict(list)
    for each in kept:
        _expect(found, awaited, each.where, each.note, keys)
    for stored in store.checkpoints():
        found.checkpoints += 1
        found.signed = max(found.signed, stored.size)
        where = f"the checkpoint of {stored.size} entries"
        size = _expect(found, awaited, where, stored.note, keys)
        if size is not None and size != stored.size:
            found.problems.append(f"{where}: it is one of {size}")
        if stored.stamp and tsa:
            _look_at_stamp(found, where, stored, tsa)
    found.kept = len(kept)
    _walk(found, store, awaited, progress)
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


def _expect(found: Verified, awaited: Awaited, where: str, note: str, keys: Sequence[NoteKey]) -> int | None:
    """Open a checkpoint, and remember to hold it against the tree; its size."""
    try:
        checkpoint = Checkpoint.opened(note, keys)
    except EvidenceRejected as error:
        found.problems.append(f"{where}: {error.message}")
        return None
    if checkpoint.origin != found.origin:
        found.problems.append(f"{where}: it is of another log, {checkpoint.origin}")
    else:
        awaited[checkpoint.size].append((where, checkpoint.root))
    return checkpoint.size


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
