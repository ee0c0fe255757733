"""Standard input and output for a server that a signal ends at once, whatever its client does or does not read.

The SDK reads and writes in threads that are waited for: a client that keeps its end open would hold the process, and
the credentials of its task, for as long as it likes.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

LONGEST_LINE = 1 << 20
"""Of what a client sends, in bytes."""


@contextmanager
def claimed() -> Iterator[tuple[int, int]]:
    """The client's two pipes. Nobody else reads meanwhile, and what is printed goes to standard error."""
    reading, writing = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    try:
        yield reading, writing
    finally:  # both stay open: a thread may still wait at them
        os.dup2(reading, 0)
        os.dup2(writing, 1)


class Lines:
    """Iterates over the lines of a descriptor, to its end. Belongs to one event loop."""

    def __init__(self, descriptor: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._stream = asyncio.StreamReader(limit=LONGEST_LINE)
        threading.Thread(target=self._read, args=(descriptor,), name="stdin", daemon=True).start()

    def __aiter__(self) -> Lines:
        return self

    async def __anext__(self) -> str:
        try:
            line = await self._stream.readline()
        except ValueError:  # too long: as if it were the end
            line = b""
        if not line:
            raise StopAsyncIteration
        return line.decode("utf-8", errors="replace")

    def _read(self, descriptor: int) -> None:
        data = b"-"
        while data:
            try:
                data = os.read(descriptor, 1 << 16)
            except OSError:
                data = b""
            with suppress(RuntimeError):  # the loop is closed: nobody reads any more
                self._loop.call_soon_threadsafe(self._stream.feed_data if data else self._end, data)

    def _end(self, nothing: bytes) -> None:
        self._stream.feed_eof()


class Outlet:
    """Writes texts to a descriptor, one after another. Belongs to one event loop."""

    def __init__(self, descriptor: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._texts: queue.SimpleQueue[tuple[bytes, asyncio.Future[None]]] = queue.SimpleQueue()
        threading.Thread(target=self._write, args=(descriptor,), name="stdout", daemon=True).start()

    async def write(self, text: str) -> None:
        """Write it whole. To a client that is gone nothing is written, and nothing is raised."""
        written = self._loop.create_future()
        self._texts.put((text.encode(), written))
        await written

    async def flush(self) -> None:
        """Nothing is held back."""

    def _write(self, descriptor: int) -> None:
        while True:
            data, written = self._texts.get()
            with suppress(OSError):
                while data:
                    data = data[os.write(descriptor, data) :]
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(_done, written)


def _done(written: asyncio.Future[None]) -> None:
    if not written.done():
        written.set_result(None)
