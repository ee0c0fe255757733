"""Folders for one program alone, and what is done about those that dead processes left.

Whoever uses a folder holds a lock on it (flock(2)): the orchestrator, and the supervisor that it started, which
inherits it. The lock goes when both are gone, however they went, and no number of a process can be taken for
another one's. So a folder that can be locked is nobody's.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PREFIX = "orchestrator-private-"
"""Of these folders only: those of versions that held no lock on theirs (`orchestrator-step-`) may be in use."""


@dataclass(frozen=True, slots=True)
class PrivateFolder:
    """A folder that is ours while `lock`, a descriptor of it, is open somewhere."""

    path: Path
    lock: int

    def close(self) -> None:
        """Hold it no more; it is removed before."""
        os.close(self.lock)


def private_folder(parent: Path) -> PrivateFolder:
    """A new folder that only this user may enter; its name tells whose it is."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=parent))
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # somebody took it for one that was left, before it was held
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(path.name, lock, None, parent):
                return PrivateFolder(path, lock)
        except BlockingIOError:
            pass  # it is being removed for the same reason
        os.close(lock)


def memory_folder() -> Path | None:
    """A folder in memory, so that credentials never reach a disk; None without one."""
    for path in _memory_folders():
        if os.path.isdir(path) and os.access(path, os.W_OK | os.X_OK):
            return Path(path)
    return None


def temporary_folder() -> Path:
    """Where programs work."""
    return Path(tempfile.gettempdir())


def remove_left_behind(parents: Iterable[Path] | None = None) -> int:
    """Remove what programs of dead processes of this user left; how many folders that were.

    What somebody uses, what is another user's, and what is no folder (a link, say) is left alone.
    """
    if parents is None:
        parents = {*map(Path, _memory_folders()), temporary_folder()}
    return sum(_remove_in(parent) for parent in parents)


def _memory_folders() -> tuple[str, ...]:
    return ("/dev/shm", f"/run/user/{os.getuid()}")  # noqa: S108 -- only private folders are made there


def _remove_in(parent: Path) -> int:
    removed = 0
    try:
        inside = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        for name in os.listdir(inside):
            if name.startswith(_PREFIX):
                removed += _removed(name, inside, parent)
    finally:
        os.close(inside)
    return removed


def _removed(name: str, inside: int, parent: Path) -> bool:
    try:
        lock = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=inside)
    except OSError:
        return False
    try:
        if os.fstat(lock).st_uid != os.geteuid():
            return False
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_at(name, lock, inside, parent):
            return False
        _overwrite_files(lock)
        shutil.rmtree(name, ignore_errors=True, dir_fd=inside)  # follows no link
        return not _is_at(name, lock, inside, parent)
    except OSError:
        return False
    finally:
        os.close(lock)


def _is_at(name: str, folder: int, inside: int | None, parent: Path) -> bool:
    """Whether the open folder is still the one of this name."""
    try:
        found = os.lstat(parent / name) if inside is None else os.stat(name, dir_fd=inside, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(found, os.fstat(folder))


def _overwrite_files(folder: int) -> None:
    """Credentials lie directly in their folder. A file that has another name as well is somebody else's, too."""
    for name in os.listdir(folder):
        with suppress(OSError):
            flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            with open(os.open(name, flags, dir_fd=folder), "wb") as file:
                known = os.fstat(file.fileno())
                if stat.S_ISREG(known.st_mode) and known.st_nlink == 1:
                    file.write(b"\0" * known.st_size)
