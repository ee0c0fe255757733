"""What the kernel can hold a step's program to, and what it is held to by the operator's choice.

The parts, by the kernel that brings them (Landlock: landlock(7); seccomp: seccomp(2)):

- `files` (5.13): only folders and files that the step was given are opened, listed, made, renamed or removed.
- `truncate` (6.2): the same for truncate(2).
- `tcp` (6.7): TCP connections only to ports that the step was given.
- `ioctl` (6.10): commands to devices only where the step may write to them.
- `signals` (6.12): no signal to, and no abstract Unix socket of, processes outside.
- `seccomp`: no system calls and sockets that go around the others.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Callable
from enum import StrEnum
from functools import cache

from orchestrator.errors import StepFailed

_CREATE_RULESET = 444
_VERSION = 1
_SECCOMP = {"x86_64": 317, "aarch64": 277}
_GET_ACTION_AVAIL = 2
_RET_ERRNO = 0x00050000

_BY_VERSION = ((1, "files"), (3, "truncate"), (4, "tcp"), (5, "ioctl"), (6, "signals"))
"""The version of Landlock's interface from which a part is there."""

PARTS = (*(part for _, part in _BY_VERSION), "seccomp")
"""Every part that there is."""


class Confinement(StrEnum):
    """Whether programs of steps are confined: all parts or the step is refused, what the kernel has, or not at all."""

    REQUIRED = "required"
    BEST = "best"
    OFF = "off"


def parts_of(confinement: Confinement, available: Callable[[], tuple[str, ...]] | None = None) -> tuple[str, ...]:
    """The parts that a program is held to. Raises StepFailed where all are required and one is missing."""
    if confinement is Confinement.OFF:
        return ()
    there = (available or available_parts)()
    missing = [part for part in PARTS if part not in there]
    if missing and confinement is Confinement.REQUIRED:
        raise StepFailed(
            f"the program cannot be confined as it is required: this kernel lacks {', '.join(missing)}",
            kind="confinement",
            hint="Linux 6.12 or newer with Landlock among its security modules has all; "
            "ORCHESTRATOR_CONFINEMENT=best takes what there is",
        )
    return there


@cache
def available_parts() -> tuple[str, ...]:
    """The parts that this kernel has, of PARTS; it is asked itself, no file says it reliably."""
    version = landlock_version()
    parts = [part for since, part in _BY_VERSION if version >= since]
    if _seccomp_is_there():
        parts.append("seccomp")
    return tuple(parts)


@cache
def landlock_version() -> int:
    """The version of Landlock's interface (landlock_create_ruleset(2)); 0 without Landlock."""
    if sys.platform != "linux":
        return 0
    return max(0, int(ctypes.CDLL(None).syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION)))


def _seccomp_is_there() -> bool:
    number = _SECCOMP.get(platform.machine())
    if number is None or sys.platform != "linux" or sys.maxsize < 1 << 32 or os.name != "posix":
        return False
    action = ctypes.c_uint32(_RET_ERRNO)
    return int(ctypes.CDLL(None).syscall(number, _GET_ACTION_AVAIL, 0, ctypes.byref(action))) == 0
