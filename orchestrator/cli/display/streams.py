"""The standard streams of the command: closed ones, full disks, readers that go away, terminals with few characters."""

from __future__ import annotations

import codecs
import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO, cast

NOT_WRITTEN = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EIO))
"""Why a file or a terminal behind the standard output takes nothing more."""

_ERRORS = "orchestrator.instead"
_INSTEAD = str.maketrans({"●": "*", "◐": "~", "✓": "+", "✗": "x", "○": "o", "·": ".", "…": "~"})
"""Our marks where the encoding of a terminal has none of them: as wide, and different from each other."""


def prepare() -> None:
    """Make the streams of this process such that whatever is written is shown as well as it can be.

    What is closed takes all. A character that cannot be shown is another one instead. What cannot be said on the
    standard error is not said: a command that ended because of that would not give back what it holds. Of the standard
    output OSError tells.
    """
    nowhere = os.open(os.devnull, os.O_RDWR)
    while nowhere <= 2:  # else the next file or connection that is opened would be a standard stream
        nowhere = os.open(os.devnull, os.O_RDWR)
    os.close(nowhere)
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 -- for the rest of the process
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    codecs.register_error(_ERRORS, _instead)
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors=_ERRORS)
    if not isinstance(sys.stderr, _Unfailing):
        sys.stderr = cast("TextIO", _Unfailing(sys.stderr))


def write_nowhere(stream: TextIO) -> None:
    """Python would complain again when it flushes what is left in the stream: give it somewhere to write to."""
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _instead(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(_INSTEAD)
    return text.encode("ascii", "replace").decode(), error.end


class _Unfailing:
    """A stream of words for people, which is given up where nobody takes them."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError):
            self._give_up()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._give_up()

    def _give_up(self) -> None:
        write_nowhere(self._stream)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


COUNTED_FROM, COUNTED_EVERY = 1.0, 0.2
"""Seconds: what is over sooner says nothing; then it is told so often how far it is."""


@contextmanager
def counting() -> Iterator[Callable[[str, int], None]]:
    """A function that is told what is looked at and how many of it were. The line is gone at the end."""
    if not sys.stderr.isatty():
        yield lambda what, number: None
        return
    following, shown = time.monotonic() + COUNTED_FROM, False

    def tell(what: str, number: int) -> None:
        nonlocal following, shown
        if (now := time.monotonic()) >= following:
            following, shown = now + COUNTED_EVERY, True
            sys.stderr.write(f"\r\x1b[2K{number} {what}")
            sys.stderr.flush()

    try:
        yield tell
    finally:
        if shown:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()
