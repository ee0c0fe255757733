"""Which file a command really runs, so that what policies are shown is what is executed."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import StepFailed

_SYSTEM = ("/usr/", "/bin/", "/sbin/", "/lib/", "/lib64/")
"""What lies here was installed by the machine's administrator."""
_LARGEST = 1 << 30


@dataclass(frozen=True, slots=True)
class Program:
    """The file of a command, absolute and without links, and the folder it is run in (None: a fresh private one).

    `start` is the path that is executed: the file, or for a script the path by which it was found, as scripts look at
    the name by which they are called.

    `sha256` is of its content, for a script (`#!`) and for whatever lies outside of the system's folders. It is
    compared again right before the start (`check_unchanged`); who changes the file in the milliseconds between that
    and the kernel's reading of it, or exchanges the interpreter of a script, is not noticed.
    """

    file: str
    start: str
    sha256: str | None
    directory: str | None


def resolve_program(name: str, *, search: str, directory: Path | None) -> Program:
    """The program that a command of this first word runs; `search` is the PATH for words without a slash.

    Raises StepFailed `error` where there is none that can be executed.
    """
    where = None if directory is None else os.path.realpath(directory)
    if "/" not in name:
        candidates = [os.path.join(folder, name) for folder in search.split(":") if folder.startswith("/")]
    elif name.startswith("/"):
        candidates = [name]
    elif where is not None:
        candidates = [os.path.join(where, name)]
    else:
        raise StepFailed(
            f"the command cannot be started: `{name}` is relative, and there is no `cwd`",
            hint="give the full path, or the folder in `cwd`",
        )
    problem = errno.ENOENT
    for candidate in candidates:
        file = os.path.realpath(candidate)
        try:
            if stat.S_ISREG(os.stat(file).st_mode) and os.access(file, os.X_OK):
                digest, script = _digest(file)
                return Program(file, candidate if script else file, digest, where)
            problem = errno.EACCES
        except OSError as error:
            problem = error.errno or problem
    raise _cannot_start(problem)


def check_unchanged(program: Program) -> None:
    """Raises StepFailed if another content is there than was shown to the policy."""
    try:
        same = os.path.realpath(program.start) == program.file and _digest(program.file)[0] == program.sha256
    except OSError as error:
        raise _cannot_start(error.errno or errno.ENOENT) from error
    if not same:
        raise StepFailed(
            f"{program.file} was changed after the policy decided about it",
            hint="the step may be run again: what is there now is then decided about",
        )


def _digest(file: str) -> tuple[str | None, bool]:
    """What is shown of the content, and whether it is a script."""
    with open(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as content:
        if not stat.S_ISREG(os.fstat(content.fileno()).st_mode):
            raise OSError(errno.EACCES, "not a regular file")
        script = content.read(2) == b"#!"
        if not script and file.startswith(_SYSTEM):
            return None, script
        if os.fstat(content.fileno()).st_size > _LARGEST:
            raise OSError(errno.EFBIG, "too large to be looked at")
        content.seek(0)
        return hashlib.file_digest(content, "sha256").hexdigest(), script


def _cannot_start(number: int) -> StepFailed:
    return StepFailed(
        f"the command cannot be started: {os.strerror(number)}",
        hint="give the full path of an executable; a name alone is looked for in the system's folders. Is `cwd` there?",
    )
