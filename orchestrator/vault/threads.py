"""Calls that block, in threads that stay and never keep the process from ending.

A thread pool of the standard library is waited for when the interpreter ends. A request that waits for an
answer of Vault's would so hold a process up long after its grace.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class _Call(Generic[T]):
    """A call, and who waits for what it gives."""

    __slots__ = ("_answer", "_call", "_loop")

    def __init__(self, call: Callable[[], T], answer: asyncio.Future[T]) -> None:
        self._call = call
        self._answer = answer
        self._loop = answer.get_loop()

    def carry_out(self) -> None:
        """Make the call and tell the loop; in a thread. Nobody waits any more: then it is not even begun."""
        if self._answer.cancelled():
            return
        try:
            result = self._call()
        except BaseException as error:  # noqa: BLE001 -- raised again where it is awaited
            self._tell(self._fail, error)
        else:
            self._tell(self._succeed, result)

    def _tell(self, report: Callable[[Any], None], what: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(report, what)

    def _succeed(self, result: T) -> None:
        if not self._answer.done():
            self._answer.set_result(result)

    def _fail(self, error: BaseException) -> None:
        if not self._answer.done():
            self._answer.set_exception(error)


class Threads:
    """At most `limit` calls at once in daemon threads, which end after `idle` seconds without work.

    Used from one event loop at a time; further calls wait for their turn.
    """

    def __init__(self, limit: int, name: str, *, idle: float = 10.0) -> None:
        self._limit = limit
        self._name = name
        self._longest_idle = idle
        self._lock = threading.Lock()
        self._alive = 0
        self._free = 0
        """Threads that wait at `_handed` for a call that nobody has put there yet."""
        self._handed: SimpleQueue[_Call[Any] | None] = SimpleQueue()
        self._waiting: deque[_Call[Any]] = deque()
        self._closed = False

    async def run(self, call: Callable[[], T]) -> T:
        """The result of the call, or what it raises. Whoever is cancelled meanwhile leaves it running."""
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._submit(_Call(call, answer))
        return await answer

    def close(self) -> None:
        """End the threads that have nothing to do now, and the others after their call. None is waited for."""
        with self._lock:
            self._closed = True
            for _ in range(self._free):
                self._handed.put(None)
            self._free = 0

    def _submit(self, call: _Call[Any]) -> None:
        with self._lock:
            if self._free:
                self._free -= 1
                self._handed.put(call)
                return
            if self._alive >= self._limit:
                self._waiting.append(call)
                return
            self._alive += 1
        try:
            threading.Thread(target=self._work, name=self._name, daemon=True).start()
        except BaseException:
            with self._lock:
                self._alive -= 1
            raise
        self._handed.put(call)  # not as an argument: the thread would hold it for as long as it lives

    def _work(self) -> None:
        call = self._take()
        while call is not None:
            call.carry_out()
            call = None  # what it held is not kept for as long as this thread idles
            call = self._next()

    def _next(self) -> _Call[Any] | None:
        """The next call, or None if this thread is to end: it is no longer counted then."""
        with self._lock:
            if self._waiting:
                return self._waiting.popleft()
            if self._closed:
                self._alive -= 1
                return None
            self._free += 1
        return self._take()

    def _take(self) -> _Call[Any] | None:
        """What is handed over. Which thread takes which call does not matter: for each call there is one."""
        while True:
            try:
                call = self._handed.get(timeout=self._longest_idle)
            except Empty:
                with self._lock:
                    if not self._free:
                        continue  # something is there for this thread, or will be in a moment
                    self._free -= 1
                    self._alive -= 1
                return None
            if call is None:
                with self._lock:
                    self._alive -= 1
            return call
