"""Lines of log files: plain, compressed by gzip, or from the standard input, and damaged ones."""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from io import BufferedReader
from pathlib import Path
from typing import IO, cast

from orchestrator.errors import UsageError

LONGEST_LINE = 16 * 1024 * 1024
"""Bytes. What is longer is broken: nothing that is looked for here is."""

STANDARD_INPUT = Path("-")
_GZIP = b"\x1f\x8b"


def lines_of(paths: Sequence[Path]) -> Iterator[tuple[Path, str | None]]:
    """The lines of each file without their ends. None for one that is no text, too long, or cut off where a file ends.

    Raises UsageError, which quotes nothing, where a file cannot be read.
    """
    for path in paths:
        try:
            with _opened(path) as file:
                for line in _lines(file):
                    yield path, line
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror or 'it is damaged'}") from None


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    with nullcontext(sys.stdin.buffer) if path == STANDARD_INPUT else open(path, "rb") as given:
        file = cast("BufferedReader", given)
        if file.peek(2)[:2] != _GZIP:
            yield file
            return
        with gzip.open(file, "rb") as unpacked:
            yield cast("IO[bytes]", unpacked)


def _lines(file: IO[bytes]) -> Iterator[str | None]:
    while True:
        try:
            line = file.readline(LONGEST_LINE)
        except (EOFError, zlib.error, gzip.BadGzipFile):  # a compressed file that was cut off
            yield None
            return
        if not line:
            return
        if not line.endswith(b"\n") and len(line) == LONGEST_LINE:
            while line and not line.endswith(b"\n"):
                line = file.readline(LONGEST_LINE)
            yield None
            continue
        try:
            yield line.rstrip(b"\r\n").decode("utf-8")
        except UnicodeDecodeError:
            yield None
