"""A checkpoint counts where a key of its own log has signed exactly it."""

from __future__ import annotations

import pytest
from aics_tlog import parse_note, parse_vkey, verify_checkpoint
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from orchestrator.errors import EvidenceRejected
from orchestrator.evidence.log.checkpoint import Checkpoint
from orchestrator.evidence.log.note import NoteKey, signed_note

OURS = Checkpoint("example.com/ours", 3, b"\5" * 32)


class Signing:
    """A log of this name, with a key of its own."""

    def __init__(self, name: str) -> None:
        self._private = Ed25519PrivateKey.generate()
        self.key = NoteKey(name, self._private.public_key().public_bytes_raw())

    def note(self, checkpoint: Checkpoint) -> str:
        text = checkpoint.text()
        return signed_note(text, self.key, self._private.sign(text.encode()))


@pytest.fixture
def ours() -> Signing:
    return Signing(OURS.origin)


def test_a_note_of_its_own_log_is_opened_here_and_elsewhere(ours: Signing) -> None:
    note = ours.note(OURS)
    assert Checkpoint.opened(note, [ours.key]) == OURS
    assert verify_checkpoint(parse_note(note), parse_vkey(str(ours.key))).log_ok
    assert NoteKey.parse(str(ours.key)) == ours.key


def test_a_key_of_another_log_says_nothing_of_ours(ours: Signing) -> None:
    """Though it is trusted, for its own log."""
    other = Signing("example.com/other")
    with pytest.raises(EvidenceRejected, match=r"by a key of its own log, but by example\.com/other"):
        Checkpoint.opened(other.note(OURS), [ours.key, other.key])


def test_signatures_of_others_beside_ours_are_ignored_and_a_wrong_one_of_a_known_key_is_not(ours: Signing) -> None:
    other = Signing("example.com/other")
    _, _, line = other.note(OURS).rpartition("\n\n")
    both = ours.note(OURS) + line
    assert Checkpoint.opened(both, [ours.key]) == OURS
    assert Checkpoint.opened(both, [ours.key, other.key]) == OURS
    _, _, wrong = other.note(Checkpoint(OURS.origin, 4, OURS.root)).rpartition("\n\n")
    with pytest.raises(EvidenceRejected, match=r"the signature of example\.com/other is not of this text"):
        Checkpoint.opened(ours.note(OURS) + wrong, [ours.key, other.key])
