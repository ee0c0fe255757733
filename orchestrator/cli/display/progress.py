"""How far something long has come, on a terminal and nowhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

FIRST_SECONDS, EVERY_SECONDS = 1.0, 0.2
"""What is over sooner says nothing; then so often."""


@contextmanager
def counting() -> Iterator[Callable[[str, int], None]]:
    """A function that is told what is looked at and how many of it were. The line is gone at the end."""
    if not sys.stderr.isatty():
        yield lambda what, number: None
        return
    following, shown = time.monotonic() + FIRST_SECONDS, False

    def tell(what: str, number: int) -> None:
        nonlocal following, shown
        if (now := time.monotonic()) >= following:
            following, shown = now + EVERY_SECONDS, True
            sys.stderr.write(f"\r\x1b[2K{number} {what}")
            sys.stderr.flush()

    try:
        yield tell
    finally:
        if shown:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()
