"""Telling processes apart, and seeing that one is certainly gone.

A process id alone is reused; with the machine's boot, the id namespace and the start time it names
one process for ever. From another machine, or another container, nothing can be said: there only the
missing sign of life tells (see `heartbeat`).
"""

from __future__ import annotations

import json
import os
import secrets
import socket
from pathlib import Path
from typing import Protocol


class Recorded(Protocol):
    """A process that is on record."""

    @property
    def process(self) -> str:
        """How it described itself."""
        ...

    @property
    def gone(self) -> bool:
        """Whether it has been declared dead."""
        ...


def new_runner_id() -> str:
    """`HOST-PID-RANDOM`: unique, and a person finds the process by it."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


def describe_self(role: str = "run", max_runs: int | None = None) -> str:
    """This process, as JSON text for the ledger."""
    return json.dumps(
        {
            "role": role,
            "max_runs": max_runs,
            "host": socket.gethostname(),
            "boot": _read(Path("/proc/sys/kernel/random/boot_id")),
            "namespace": _namespace(),
            "pid": os.getpid(),
            "start": _start(os.getpid()),
        },
        sort_keys=True,
    )


def has_ended(recorded: Recorded) -> bool:
    """Whether a process on record is known to have ended; another machine's may have without being seen."""
    return recorded.gone or certainly_gone(recorded.process)


def certainly_gone(process: str) -> bool:
    """Whether a process that described itself so has ended. False where that cannot be known from here."""
    told = json.loads(process)
    here = (socket.gethostname(), _read(Path("/proc/sys/kernel/random/boot_id")), _namespace())
    if not all(here) or not told.get("start") or (told.get("host"), told.get("boot"), told.get("namespace")) != here:
        return False
    return _start(int(told["pid"])) != str(told["start"])


def _start(pid: int) -> str:
    """Clock ticks after boot at which the process began; empty if there is none, or only its remains (a zombie)."""
    fields = _read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return "" if len(fields) < 20 or fields[0] in ("Z", "X") else fields[19]


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
