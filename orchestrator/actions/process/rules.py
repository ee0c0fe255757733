"""What a step's program may reach, as the rules that its supervisor puts into force: pure, but for what is there.

Landlock (landlock(7)) refuses whatever no rule allows. The numbers are those of `linux/landlock.h`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.actions.confinement import landlock_version
from orchestrator.actions.process import seccomp
from orchestrator.jsontypes import JsonObject

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REFER, _TRUNCATE, _IOCTL = 1 << 13, 1 << 14, 1 << 15
_FIRST = (1 << 13) - 1
"""All rights of the first version: the above, and to remove and to make each type of file."""

_READ = _EXECUTE | _READ_FILE | _READ_DIR
_DEVICE = _READ_FILE | _WRITE_FILE | _TRUNCATE | _IOCTL
_BIND_TCP, _CONNECT_TCP = 1, 2
_ABSTRACT_SOCKETS, _SIGNALS = 1, 2

SYSTEM_FOLDERS = ("/usr", "/lib", "/lib64", "/lib32", "/bin", "/sbin", "/nix/store", "/gnu/store")
"""Programs and libraries, which are everybody's to read."""

SYSTEM_FILES = tuple(
    f"/etc/{name}"
    for name in (
        *("ssl", "pki", "crypto-policies", "ca-certificates"),
        *("resolv.conf", "nsswitch.conf", "hosts", "host.conf", "gai.conf", "services", "protocols"),
        *("passwd", "group", "localtime", "timezone", "os-release", "mime.types", "locale.alias"),
        *("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "gitconfig", "postgresql-common"),
    )
)
"""What programs cannot do without: names of hosts and users, certificates, libraries, times."""

DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


@dataclass(frozen=True, slots=True)
class Reach:
    """What a program may reach beyond the system's own folders, its credentials and its private folder.

    `listed` are folders whose names alone may be seen; `ports` are those of TCP, on any host.
    """

    read: tuple[Path, ...] = ()
    write: tuple[Path, ...] = ()
    listed: tuple[Path, ...] = ()
    ports: tuple[int, ...] = ()


def order_of(
    parts: Sequence[str], reach: Reach, *, read: Iterable[Path], write: Iterable[Path], version: int | None = None
) -> JsonObject | None:
    """What the supervisor is told; None where no part holds. `read` and `write` are granted besides `reach`.

    A path that is not there is left out: nothing at it can be reached.
    """
    if not parts:
        return None
    version = landlock_version() if version is None else version
    handled = _handled(parts, version)
    paths: dict[str, int] = {}
    for path, rights in _paths(reach, read, write):
        paths[str(path)] = paths.get(str(path), 0) | rights & handled
    net = _BIND_TCP | _CONNECT_TCP if "tcp" in parts else 0
    scoped = _ABSTRACT_SOCKETS | _SIGNALS if "signals" in parts else 0
    return {
        "files": handled,
        "net": net,
        "scoped": scoped,
        "size": 24 if version >= 6 else 16 if version >= 4 else 8,
        "paths": [[path, rights] for path, rights in paths.items()],
        "connect": _CONNECT_TCP,
        "ports": list(reach.ports) if net else [],
        "seccomp": seccomp.program().hex() if "seccomp" in parts else "",
    }


def _handled(parts: Sequence[str], version: int) -> int:
    if "files" not in parts:
        return 0
    return (
        _FIRST
        | (_REFER if version >= 2 else 0)
        | (_TRUNCATE if "truncate" in parts else 0)
        | (_IOCTL if "ioctl" in parts else 0)
    )


def _paths(reach: Reach, read: Iterable[Path], write: Iterable[Path]) -> Iterator[tuple[Path, int]]:
    everything = _FIRST | _REFER | _TRUNCATE | _IOCTL
    for path in (*map(Path, SYSTEM_FOLDERS), *map(Path, SYSTEM_FILES), *reach.read, *read):
        yield path, _READ
    for path in map(Path, DEVICES):
        yield path, _DEVICE
    for path in reach.listed:
        yield path, _READ_DIR
    for path in (*reach.write, *write):
        yield path, everything


def program_paths(program: str, called: str) -> tuple[Path, ...]:
    """The file of a program, and the virtual environment that it is called from, so that it can be started."""
    file = Path(program)
    caller = Path(called) if called.startswith("/") else file
    return (file, *({file.resolve()} - {file}), *virtual_environment(caller.parent.parent))


def virtual_environment(folder: Path) -> tuple[Path, ...]:
    """The folder and that of the interpreter behind it, if it is one (`pyvenv.cfg`, PEP 405)."""
    try:
        lines = (folder / "pyvenv.cfg").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ()
    keys = {name.strip(): value.strip() for name, _, value in (line.partition("=") for line in lines)}
    home = Path(keys.get("home", ""))
    return (folder, home.parent) if home.is_absolute() and home.parent != Path("/") else (folder,)
