"""Keeping this process's memory to itself while it holds credentials."""

from __future__ import annotations

import contextlib
import ctypes
import resource

_PR_SET_DUMPABLE = 4


def keep_memory_private() -> None:
    """No core file, and no reading of our memory or environment by other processes of the same user.

    prctl(2), PR_SET_DUMPABLE; Linux only, elsewhere only the core file is prevented. Programs that
    we start are not affected: they begin with a state of their own.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
