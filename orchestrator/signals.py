"""SIGINT, SIGTERM and SIGHUP while something is held that has to be given back first."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, TypeVar

from orchestrator.environment import ending_signals
from orchestrator.errors import ExitCode, Interrupted

T = TypeVar("T")

EXIT_CODES = {
    signal.SIGINT: ExitCode.INTERRUPTED,
    signal.SIGTERM: ExitCode.TERMINATED,
    signal.SIGHUP: ExitCode.HUNG_UP,
}


@contextmanager
def handled(on_signal: Callable[[signal.Signals], None]) -> Iterator[None]:
    """While inside `on_signal` is called, in the event loop, for each of the signals; who had them before gets
    them back.

    The loop's own way to a handler is a byte in the pipe that wakes it, and is lost where that is full of other
    wakings: here the byte only wakes, and what is to be called is queued by a handler that runs in any case.
    """
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in ending_signals()}

    def queue(number: int, frame: FrameType | None) -> None:
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(on_signal, signal.Signals(number))

    with _blocked():  # in between the loop would have one that calls nothing
        for number in before:
            loop.add_signal_handler(number, _nothing)
            signal.signal(number, queue)
            signal.siginterrupt(number, False)
    try:
        yield
    finally:
        with _blocked():  # the loop leaves the defaults behind
            for number, handler in before.items():
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def _blocked() -> Iterator[None]:
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, EXIT_CODES)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _nothing() -> None:
    """The loop is awake."""


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
