"""Free ports for servers that must be able to come back on the port they had."""

from __future__ import annotations

import os
import secrets
import socket
from contextlib import suppress
from threading import Lock

from orchestrator.errors import Unreachable

_RANGE = range(20_000, 32_000)
"""Below the ports that the kernel gives to outgoing connections (32768 up on Linux, 49152 up on macOS).

A port out of that upper range could be taken by anybody's connection while its server restarts.
"""

_BLOCK = 100
"""Ports that one process has for itself; the first of them is bound for as long as the process lives."""


class _Block:
    """The ports of one process: no other that draws here gets one of them, not even while its server is down.

    They are drawn in turn, so that one comes again as late as possible.
    """

    def __init__(self) -> None:
        self.owner = os.getpid()
        first = _first_of_a_block()
        self._ports = range(first + 1, first + _BLOCK)
        self._drawn = 0

    def draw(self) -> int:
        """One that nobody listens on now. Raises Unreachable where all are taken."""
        for _ in self._ports:
            port = self._ports[self._drawn % len(self._ports)]
            self._drawn += 1
            with suppress(OSError):
                _bound(port).close()
                return port
        raise Unreachable(f"no port from {self._ports[0]} to {self._ports[-1]} of 127.0.0.1 is free")


_lock = Lock()
_block: _Block | None = None


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody listens on now, and that no other process is given while this one lives."""
    global _block
    with _lock:
        if _block is None or _block.owner != os.getpid():  # a fork draws from a block of its own
            _block = _Block()
        return _block.draw()


def _first_of_a_block() -> int:
    """The port by which a block is held from now until this process ends."""
    blocks = list(_RANGE[::_BLOCK])
    secrets.SystemRandom().shuffle(blocks)
    for first in blocks:
        with suppress(OSError):
            _bound(first).detach()
            return first
    raise Unreachable(f"all ports from {_RANGE[0]} to {_RANGE[-1]} of 127.0.0.1 are held by other processes")


def _bound(port: int) -> socket.socket:
    """A socket at this port, which does not listen. Raises OSError where another has it."""
    probe = socket.socket()
    try:
        probe.bind(("127.0.0.1", port))
    except OSError:
        probe.close()
        raise
    return probe
