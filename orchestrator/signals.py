"""SIGINT and SIGTERM while something is held that has to be given back first."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from orchestrator.errors import ExitCode, Interrupted

T = TypeVar("T")

EXIT_CODES = {signal.SIGINT: ExitCode.INTERRUPTED, signal.SIGTERM: ExitCode.TERMINATED}


@contextmanager
def handled(on_signal: Callable[[signal.Signals], None]) -> Iterator[None]:
    """While inside `on_signal` is called, in the event loop, for each of both signals; who had them before gets
    them back."""
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in EXIT_CODES}
    for number in EXIT_CODES:
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield
    finally:
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, EXIT_CODES)  # the loop leaves the defaults behind
        try:
            for number, handler in before.items():
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@dataclass(slots=True)
class Interruptions:
    """Turns the first signal into a cancellation of the work. Later ones change nothing: revocation goes on, within
    its grace. `told` is called once with the signal and its exit code, and `notice` with what a person should know.
    """

    told: Callable[[ExitCode, str], None] = lambda code, reason: None
    notice: Callable[[str], None] = lambda text: None
    _received: list[signal.Signals] = field(default_factory=list)
    _work: asyncio.Future[Any] | None = None

    def __call__(self, number: signal.Signals) -> None:
        """A signal came."""
        self._received.append(number)
        if len(self._received) > 1:
            self.notice("still revoking what was issued; what cannot be confirmed will be listed at the end")
            return
        self.told(EXIT_CODES[number], f"interrupted by {number.name}")
        if self._work is not None:
            self.notice(f"{number.name}: stopping the steps and revoking their credentials")
            self._work.cancel()

    async def carry_out(self, work: Coroutine[Any, Any, T]) -> T:
        """What the work gives. Raises Interrupted where a signal ended it before it could say how it ended."""
        self._work = task = asyncio.ensure_future(work)
        if self._received:
            task.cancel()
        try:
            return await task
        except asyncio.CancelledError:
            if not self._received:
                raise
            first = self._received[0]
            raise Interrupted(f"interrupted by {first.name}", exit_code=EXIT_CODES[first]) from None
        finally:
            self._work = None
