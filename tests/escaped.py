"""Recognisable secrets, and where they must not be: everything that the servers of the tests issue looks like one."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

PASSWORD_LETTERS = "QXZJ"
"""Of every database password."""

_TOKENS = [
    re.compile(pattern)
    for pattern in (
        rb"s\.(?<![A-Za-z0-9_]s\.)[A-Za-z0-9]{24}\b",
        rb"hv[bs]\.(?<![A-Za-z0-9]{21}hv[bs]\.)[A-Za-z0-9_-]{24,}",
        rb"eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{20,}",
        rb"xoxb-[A-Za-z0-9-]{10,}",
        rb"FwoGZX[0-9a-f]{100}",
    )
]
"""A token of OpenBao, one of HashiCorp's Vault, a signed JWT, a Slack bot token, a session of the tests' AWS. Each
begins with letters, which makes looking for them quick. An id of 24 letters in a namespace, `...hvs.W5aZZh`, with the
next column of a file behind it, is none."""

_OF_PASSWORDS = bytes(each in PASSWORD_LETTERS.encode() for each in range(256))
"""For `translate`: the letters of passwords become 1, all others 0."""

_PASSWORD = b"\1" * 20


def holds_secret(data: bytes) -> bool:
    """Whether a recognisable secret is in it: all that a session has written is looked through in a second or two."""
    return _PASSWORD in data.translate(_OF_PASSWORDS) or any(token.search(data) for token in _TOKENS)


def escaped_secrets(roots: Sequence[Path]) -> list[str]:
    """The files below these folders that hold a recognisable secret; the servers' own data is theirs to keep."""
    found = []
    for root in roots:
        for path in root.rglob("*"):
            if path.is_file() and not path.is_symlink() and not {"pgdata", "raft"} & set(path.parts):
                try:
                    with path.open("rb") as file:
                        if any(holds_secret(piece) for piece in pieces_of(file.fileno())):
                            found.append(str(path))
                except OSError:
                    continue
    return found


def pieces_of(file: int) -> Iterator[bytes]:
    """The written parts of a file, piece by piece, each with the end of the one before; holes are left out."""
    offset, before = 0, b""
    while True:
        try:
            offset = os.lseek(file, offset, os.SEEK_DATA)
        except OSError:
            return  # ENXIO: nothing but a hole until the end
        piece = os.read(file, 1 << 20)
        if not piece:
            return
        yield before + piece
        offset, before = offset + len(piece), piece[-4096:]
