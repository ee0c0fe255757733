"""Checkpoints: what a log says of itself, signed (https://c2sp.org/tlog-checkpoint)."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from orchestrator.errors import EvidenceRejected
from orchestrator.evidence.log.note import NoteKey, opened_note

_SIZE = re.compile(r"0|[1-9][0-9]{0,17}")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The log of this name had so many entries, over which this was the root (32 bytes)."""

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        """What is signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"

    @classmethod
    def of_text(cls, text: str) -> Checkpoint:
        """The checkpoint of a signed text; lines of others after it are ignored. Raises EvidenceRejected."""
        lines = text.split("\n")
        try:
            origin, size, encoded = lines[:3]
            root = base64.b64decode(encoded, validate=True)
        except (ValueError, binascii.Error):
            raise EvidenceRejected("this is no checkpoint of a log") from None
        if not origin or not _SIZE.fullmatch(size) or len(root) != 32 or "" in lines[3:-1]:
            raise EvidenceRejected("this is no checkpoint of a log")
        return cls(origin, int(size), root)

    @classmethod
    def opened(cls, note: str, keys: Sequence[NoteKey]) -> Checkpoint:
        """The checkpoint of a note that one of the keys has signed, a key of its own log. Raises EvidenceRejected."""
        text, signers = opened_note(note, keys)
        checkpoint = cls.of_text(text)
        if checkpoint.origin not in signers:
            raise EvidenceRejected(f"it is not signed by a key of its own log, but by {', '.join(sorted(signers))}")
        return checkpoint


def notes_in(text: str) -> Iterator[str]:
    """The signed notes of a file to which they were added one after the other.

    A note is its text, an empty line and the lines of its signatures; what follows begins the next one. Raises
    EvidenceRejected where the last one is cut off.
    """
    kept: list[str] = []
    signed = False
    for line in text.replace("\r\n", "\n").split("\n"):
        is_signature = line.startswith("\N{EM DASH} ")
        if signed and not is_signature:
            yield _note(kept)
            kept, signed = [], False
        if kept or line:
            kept.append(line)
        signed = is_signature
    if signed:
        raise EvidenceRejected("the last checkpoint of the file is cut off")
    if kept:
        raise EvidenceRejected("the file ends with something that is no signed checkpoint")


def _note(lines: Sequence[str]) -> str:
    return "\n".join(lines) + "\n"
