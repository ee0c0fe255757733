"""Free ports for servers that must be able to come back on the port they had."""

from __future__ import annotations

import secrets
import socket

from orchestrator.errors import Unreachable

_RANGE = range(20_000, 32_000)
"""Below the ports that the kernel gives to outgoing connections (32768 up on Linux, 49152 up on macOS).

A port out of that upper range could be taken by anybody's connection while its server restarts.
"""

_TRIES = 100


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody listens on now, drawn at random so that neighbours seldom agree."""
    for _ in range(_TRIES):
        port = secrets.choice(_RANGE)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise Unreachable(f"no free port was found on 127.0.0.1 in {_TRIES} tries")
