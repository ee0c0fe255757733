"""A bound on the bytes that a server sends, below a library which reads a whole message before it tells of it.

libpq keeps one row in memory, however long, and offers no limit. So the library is given one end of a pair of sockets
in the place of its own connection, and what the server sends is handed on only as long as the bound allows it. What is
handed on is not looked into: with TLS it is the library's own ciphertext. It costs each exchange with the server one
more turn of the event loop in each direction.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

_PIECE = 1 << 16
_LAST_WORDS = 2.0
"""Seconds in which what the owner sent last, such as that it leaves, is handed on."""


@dataclass(slots=True)
class Inflow:
    """What may still come, in bytes. `exceeded`: the server wanted to send more, and the connection is cut."""

    left: int
    exceeded: bool = False


@asynccontextmanager
async def bounded_inflow(fd: int, limit: int) -> AsyncIterator[Inflow]:
    """Let the owner of this connected socket receive so many bytes more, and no others.

    The owner must have nothing in flight when the block is entered, must not block (as libpq does not), and closes the
    descriptor before the block is left; what it sends until then is handed on.
    """
    inflow = Inflow(limit)
    server = socket.socket(fileno=os.dup(fd))
    ours, theirs = socket.socketpair()
    for each in (server, ours, theirs):
        each.setblocking(False)
    os.dup2(theirs.fileno(), fd, inheritable=False)
    theirs.close()
    back = asyncio.ensure_future(_hand_back(server, ours, inflow))
    on = asyncio.ensure_future(_hand_on(ours, server))
    try:
        yield inflow
    finally:
        back.cancel()
        try:
            await asyncio.wait([on], timeout=_LAST_WORDS)  # it ends by itself: the owner has closed its end
        finally:
            on.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.gather(back, on, return_exceptions=True)
            ours.close()
            server.close()


async def _hand_back(server: socket.socket, ours: socket.socket, inflow: Inflow) -> None:
    """From the server to the owner, until the bound is met or the server has ended."""
    loop = asyncio.get_running_loop()
    with suppress(OSError):
        while data := await loop.sock_recv(server, _PIECE):
            if len(data) > inflow.left:
                inflow.exceeded = True
                break
            inflow.left -= len(data)
            await loop.sock_sendall(ours, data)
    with suppress(OSError):
        ours.shutdown(socket.SHUT_RDWR)


async def _hand_on(ours: socket.socket, server: socket.socket) -> None:
    """From the owner to the server, until the owner has closed its end."""
    loop = asyncio.get_running_loop()
    with suppress(OSError):
        while data := await loop.sock_recv(ours, _PIECE):
            await loop.sock_sendall(server, data)
