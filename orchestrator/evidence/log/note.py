"""Signed notes and the keys that verify them (https://c2sp.org/signed-note), with Ed25519 signatures.

A public key is one line, `name+ID+key`, as the Go checksum database and other logs write it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from orchestrator.errors import EvidenceRejected

ED25519 = 1
"""The signature type of the specification."""

LONGEST = 1 << 20
"""Characters of a note: more is no note of ours."""

_DASH = "\N{EM DASH} "


@dataclass(frozen=True, slots=True)
class NoteKey:
    """A public key that signs notes: the name of the signer, and 32 bytes (RFC 8032)."""

    name: str
    public: bytes

    @property
    def id(self) -> bytes:
        """Four bytes by which a signature says whose it is."""
        return hashlib.sha256(self.name.encode() + b"\n" + self._encoded).digest()[:4]

    @property
    def _encoded(self) -> bytes:
        return bytes([ED25519]) + self.public

    def __str__(self) -> str:
        return f"{self.name}+{self.id.hex()}+{base64.b64encode(self._encoded).decode()}"

    @classmethod
    def parse(cls, text: str) -> NoteKey:
        """The key of a line. Raises EvidenceRejected."""
        name, _, rest = text.strip().partition("+")
        claimed, _, encoded = rest.partition("+")
        key = _decoded(encoded)
        if not _is_name(name) or key is None or len(key) != 33 or key[0] != ED25519:
            raise EvidenceRejected(f"this is no public Ed25519 key of a signed log: {text.strip()[:200]}")
        found = cls(name, key[1:])
        if found.id.hex() != claimed:
            raise EvidenceRejected(f"the public key of {name} has another id than {claimed[:20]}: it was changed")
        return found

    def verifies(self, signature: bytes, text: str) -> bool:
        """Whether it has signed this text."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, text.encode())
        except InvalidSignature:
            return False
        return True


def signed_note(text: str, key: NoteKey, signature: bytes) -> str:
    """The note: its text, which ends with a newline, and the line of the signature."""
    return f"{text}\n{_DASH}{key.name} {base64.b64encode(key.id + signature).decode()}\n"


def opened_note(note: str, keys: Sequence[NoteKey]) -> tuple[str, frozenset[str]]:
    """The text of a note that one of the keys has signed, and the names of those that have.

    Raises EvidenceRejected where none has, or where a signature of one of them is not its. Signatures of others are
    ignored, as the specification wants it.
    """
    text, signatures = _parted(note)
    by_whom = {(key.name, key.id): key for key in keys}
    verified: set[str] = set()
    for name, identity, signature in signatures:
        if (key := by_whom.get((name, identity))) is None:
            continue
        if not key.verifies(signature, text):
            raise EvidenceRejected(f"the signature of {name} is not of this text: it was changed")
        verified.add(name)
    if not verified:
        named = ", ".join(sorted({name for name, _, _ in signatures}))
        raise EvidenceRejected(f"it is not signed by a key that is trusted here, but by {named}")
    return text, frozenset(verified)


def _parted(note: str) -> tuple[str, Sequence[tuple[str, bytes, bytes]]]:
    """The text, and of each signature name, key id and bytes."""
    body, blank, rest = note.rpartition("\n\n")
    if len(note) > LONGEST or not blank or any(ord(char) < 32 and char != "\n" for char in note):
        raise EvidenceRejected("this is no signed note")
    if not rest.endswith("\n"):
        raise EvidenceRejected("this is no signed note: it does not end with a whole line")
    return body + "\n", [_signature(line) for line in rest[:-1].split("\n")]


def _signature(line: str) -> tuple[str, bytes, bytes]:
    name, _, encoded = line.removeprefix(_DASH).partition(" ")
    signature = _decoded(encoded)
    if not line.startswith(_DASH) or not _is_name(name) or signature is None or len(signature) < 5:
        raise EvidenceRejected("this is no signed note: a line after its text is no signature")
    return name, signature[:4], signature[4:]


def parse_keys(lines: Iterable[str]) -> Sequence[NoteKey]:
    """The keys of a file: one a line, beside empty lines and those that begin with `#`. Raises EvidenceRejected."""
    said = (line.strip() for line in lines)
    return [NoteKey.parse(line) for line in said if line and not line.startswith("#")]


def _is_name(name: str) -> bool:
    return bool(name) and "+" not in name and not any(char.isspace() for char in name)


def _decoded(encoded: str) -> bytes | None:
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return None
