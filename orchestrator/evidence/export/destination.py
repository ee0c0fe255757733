"""Where an export goes: a stream, or a file that is there when it is whole and not before."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from orchestrator.errors import UsageError


@contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """To be written to; takes its place under mode 0600 when all is written, and is gone where something goes wrong.

    What was at that place stays until then, and a link stays one. Raises UsageError where no file can be made there.
    """
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is no file", hint="without --output it goes to the standard output")
    target = path.resolve()
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=target.parent)  # of mode 0600
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from None
    try:
        with open(descriptor, "w", encoding="utf-8", newline="") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise
