"""Proofs that an entry is in a log, one text file each (https://c2sp.org/tlog-proof)."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.errors import EvidenceRejected
from orchestrator.evidence.log.checkpoint import Checkpoint
from orchestrator.evidence.log.note import LONGEST, NoteKey
from orchestrator.ledger.log.leaf import Leaf
from orchestrator.ledger.log.tree import leaf_hash, root_of_inclusion

SUFFIX = ".tlog-proof"

_FIRST = "c2sp.org/tlog-proof@v1"
_INDEX = re.compile(r"index (0|[1-9][0-9]{0,17})")


@dataclass(frozen=True, slots=True)
class Proof:
    """That an entry is at this position of the log of a checkpoint. `extra` holds the entry itself."""

    index: int
    path: Sequence[bytes]
    checkpoint: str
    """The signed note."""
    extra: bytes

    def text(self) -> str:
        """The file."""
        lines = [
            _FIRST,
            f"extra {base64.b64encode(self.extra).decode()}",
            f"index {self.index}",
            *(base64.b64encode(each).decode() for each in self.path),
        ]
        return "\n".join(lines) + "\n\n" + self.checkpoint

    @classmethod
    def parse(cls, text: str) -> Proof:
        """Raises EvidenceRejected."""
        head, blank, checkpoint = text.partition("\n\n")
        lines = head.split("\n")
        if len(text) > LONGEST or not blank or lines[0] != _FIRST:
            raise EvidenceRejected(f"this is no proof of a log: it does not begin with {_FIRST}")
        extra = b""
        rest = lines[1:]
        try:
            if rest and rest[0].startswith("extra "):
                extra = base64.b64decode(rest.pop(0).removeprefix("extra "), validate=True)
            index = _INDEX.fullmatch(rest.pop(0)) if rest else None
            path = [base64.b64decode(line, validate=True) for line in rest]
        except (binascii.Error, ValueError):
            index = None
            path = []
        if index is None or any(len(each) != 32 for each in path):
            raise EvidenceRejected("this is no proof of a log: a line of it cannot be read")
        return cls(int(index[1]), path, checkpoint, extra)

    def verified(self, keys: Sequence[NoteKey]) -> tuple[Leaf, Checkpoint]:
        """The entry that it proves, and the log's checkpoint. Raises EvidenceRejected where it proves nothing."""
        checkpoint = Checkpoint.opened(self.checkpoint, keys)
        try:
            leaf = Leaf.of(self.extra)
        except ValueError as error:
            raise EvidenceRejected(str(error)) from None
        led_to = root_of_inclusion(leaf_hash(self.extra), self.index, checkpoint.size, self.path)
        if led_to != checkpoint.root:
            raise EvidenceRejected("the proof does not lead to the root that was signed: it was changed, or another's")
        return leaf, checkpoint
