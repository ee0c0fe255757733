"""Calls that block, in threads that never keep the process from ending.

A thread pool of the standard library is waited for when the interpreter ends. A request that waits for an
answer of Vault's would so hold a process up long after its grace.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


class Threads:
    """At most `limit` calls at once, each in a daemon thread of its own. Belongs to one event loop."""

    def __init__(self, limit: int, name: str) -> None:
        self._places = asyncio.Semaphore(limit)
        self._name = name

    async def run(self, call: Callable[[], T]) -> T:
        """The result of the call, or what it raises. Whoever is cancelled meanwhile leaves it running."""
        loop = asyncio.get_running_loop()
        async with self._places:
            answer: asyncio.Future[T] = loop.create_future()

            def tell(report: Callable[[], None]) -> None:
                with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                    loop.call_soon_threadsafe(lambda: None if answer.done() else report())

            def work() -> None:
                try:
                    result = call()
                except BaseException as error:  # noqa: BLE001 -- raised again where it is awaited
                    problem = error
                    tell(lambda: answer.set_exception(problem))
                else:
                    tell(lambda: answer.set_result(result))

            threading.Thread(target=work, name=self._name, daemon=True).start()
            return await answer
