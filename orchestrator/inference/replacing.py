"""Replacing a file by a new version of itself: all of it or nothing, whatever happens meanwhile."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from orchestrator.errors import UsageError


def read_exactly(path: Path) -> str:
    """The text with its own line ends. Raises UsageError where it cannot be read."""
    try:
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {getattr(error, 'strerror', '') or 'it is not UTF-8'}") from error


def replace_text(path: Path, before: str, after: str) -> None:
    """Put `after` in the place of `before`, under the same mode and owner; a symbolic link stays one.

    The new text is complete on disk before it takes the place of the old one. Raises UsageError, and then the
    file is as it was, where it is not `before` any more or cannot be written.
    """
    target = path.resolve()
    if read_exactly(target) != before:
        raise UsageError(f"{path} was changed by somebody else meanwhile; nothing was written", hint="try again")
    beside = None
    try:
        old = target.stat()
        number, beside = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".new")
        with open(number, "wb") as file:
            file.write(after.encode("utf-8"))
            file.flush()
            made = os.fstat(file.fileno())
            if (made.st_uid, made.st_gid) != (old.st_uid, old.st_gid):
                os.fchown(file.fileno(), old.st_uid, old.st_gid)
            os.fchmod(file.fileno(), stat.S_IMODE(old.st_mode))
            os.fsync(file.fileno())
        os.replace(beside, target)
        beside = None
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        if beside is not None:
            os.unlink(beside)
