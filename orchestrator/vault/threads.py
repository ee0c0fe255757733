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


class _Worker:
    """One thread's place: the call that it is to make next, and the lock at which it waits for one."""

    __slots__ = ("call", "woken")

    def __init__(self, call: _Call[Any]) -> None:
        self.call: _Call[Any] | None = call
        self.woken = threading.Lock()
        self.woken.acquire()

    def carry_out(self) -> None:
        call, self.call = self.call, None  # what it holds is not kept for as long as this thread idles
        if call is not None:
            call.carry_out()


class Threads:
    """At most `limit` calls at once in daemon threads, which end after `idle` seconds without work.

    Belongs to one event loop; further calls wait for their turn. The thread that was busy last gets the next
    call, so that those which are not needed grow old.
    """

    def __init__(self, limit: int, name: str, *, idle: float = 10.0) -> None:
        self._limit = limit
        self._name = name
        self._longest_idle = idle
        self._lock = threading.Lock()
        self._alive = 0
        self._free: list[_Worker] = []
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
            self._alive -= len(self._free)
            while self._free:
                self._free.pop().woken.release()

    def _submit(self, call: _Call[Any]) -> None:
        with self._lock:
            if self._free:
                worker = self._free.pop()
                worker.call = call
                worker.woken.release()
                return
            if self._alive >= self._limit:
                self._waiting.append(call)
                return
            self._alive += 1
        try:
            threading.Thread(target=self._work, args=(_Worker(call),), name=self._name, daemon=True).start()
        except BaseException:
            with self._lock:
                self._alive -= 1
            raise

    def _work(self, worker: _Worker) -> None:
        while worker.call is not None:
            worker.carry_out()
            self._wait_for_next(worker)

    def _wait_for_next(self, worker: _Worker) -> None:
        """Returns with the worker's next call, or without one if its thread is to end and is no longer counted."""
        with self._lock:
            if self._waiting:
                worker.call = self._waiting.popleft()
                return
            if self._closed:
                self._alive -= 1
                return
            self._free.append(worker)
        if worker.woken.acquire(timeout=self._longest_idle):
            return
        with self._lock:
            if worker in self._free:
                self._free.remove(worker)
                self._alive -= 1
                return
        worker.woken.acquire()  # it was woken in the moment in which it gave up
