"""Reading a file that somebody else may have put there: one regular file of bounded size, opened once."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

from orchestrator.errors import UsageError

MAX_BYTES = 1 << 20
"""Of one file."""


def read_text(path: Path, *, within: Path | None = None) -> str:
    """The text of a file. Raises UsageError, which shows nothing of its content.

    `within` is for files that nobody named: a link may lead to another place of that folder, as the links of a
    ConfigMap of Kubernetes do, and not out of it. What is looked at is the file that was opened, not its name.
    """
    try:
        # Without O_NONBLOCK the open of a FIFO waits for a writer, for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise _unreadable(path, error) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"{path} is not a regular file", hint="name a file")
        if within is not None and not _opened(descriptor, path).is_relative_to(Path(os.path.realpath(within))):
            raise UsageError(f"{path} is a link that leads out of its folder", hint="put the file itself there")
        if status.st_size > MAX_BYTES:
            raise _too_large(path)
        content = _read(descriptor)
    except OSError as error:
        raise _unreadable(path, error) from error
    finally:
        os.close(descriptor)
    return _text(content, path)


def _text(content: bytes, path: Path | str) -> str:
    if len(content) > MAX_BYTES:
        raise _too_large(path)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text") from None  # the cause holds the content


def read_standard_input() -> str:
    """The same of what comes in on the standard input."""
    try:
        content = _read(0)
    except OSError as error:
        raise UsageError(f"the standard input cannot be read: {error.strerror}", hint="name a file") from error
    return _text(content, "the standard input")


def _read(descriptor: int) -> bytes:
    """At most one byte more than is allowed: a file may grow, and /proc tells no sizes."""
    content = b""
    while len(content) <= MAX_BYTES and (part := os.read(descriptor, MAX_BYTES + 1 - len(content))):
        content += part
    return content


def _opened(descriptor: int, path: Path) -> Path:
    """Where the opened file is, whatever its name leads to by now."""
    if sys.platform == "linux":
        return Path(os.readlink(f"/proc/self/fd/{descriptor}"))
    real = os.path.realpath(path)
    status = os.lstat(real)
    if not os.path.samestat(status, os.fstat(descriptor)):
        raise UsageError(f"{path} changes while it is read", hint="try it again")
    return Path(real)


def _unreadable(path: Path, error: OSError) -> UsageError:
    return UsageError(f"{path} cannot be read: {error.strerror}", hint="`orchestrator init` writes a starter workflow")


def _too_large(path: Path | str) -> UsageError:
    return UsageError(f"{path} is larger than {MAX_BYTES // 1024} KiB", hint="split it, or read large data in a step")
