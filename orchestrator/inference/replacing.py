"""Replacing a file by a new version of itself: all of it or nothing, whatever happens meanwhile."""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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

    The new text is complete on disk before it takes the place of the old one; a signal that comes meanwhile is
    received afterwards. Raises UsageError, and then the file is as it was, where it is not `before` any more,
    cannot be written, or is just being replaced by another process.
    """
    try:
        target = path.resolve(strict=True)
        with _undisturbed(), _alone(path, target), _beside(target, after) as new:
            if read_exactly(target) != before:
                raise _changed(path)
            os.replace(new, target)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}; nothing was changed") from error


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Nothing is left half done, and no file beside, where somebody presses Ctrl-C just now."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _alone(path: Path, target: Path) -> Iterator[None]:
    """While inside no other process of ours replaces the file: who comes second sees that it is another one.

    It is opened for writing, so that a file which may not be written is not replaced either.
    """
    with open(target, "r+b") as old:
        try:
            fcntl.flock(old, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _changed(path) from None
        if not os.path.samestat(os.fstat(old.fileno()), target.stat()):
            raise _changed(path)
        yield


@contextmanager
def _beside(target: Path, text: str) -> Iterator[Path]:
    """A complete file with the text, mode and owner in the same folder; it is gone at the end, unless it moved."""
    old = target.stat()
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        new = Path(folder, "new")
        with open(new, "xb") as file:
            made = os.fstat(file.fileno())
            if (made.st_uid, made.st_gid) != (old.st_uid, old.st_gid):
                os.fchown(file.fileno(), old.st_uid, old.st_gid)
            os.fchmod(file.fileno(), stat.S_IMODE(old.st_mode))
            file.write(text.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        yield new


def _changed(path: Path) -> UsageError:
    return UsageError(f"{path} was changed by somebody else meanwhile; nothing was written", hint="try again")
