"""What SIGINT, SIGTERM and SIGHUP do while a command works, wherever it is.

They raise KeyboardInterrupt, so that whatever is open is closed on the way out; the services of a run take the
signals over while they hold anything (`orchestrator.signals`). KeyboardInterrupt may come out anywhere, also where
Python cannot pass it on (in a callback of the garbage collector) and where a library makes another error of it.
So what was received is remembered: it decides the exit code, and nothing new begins after it.
"""

from __future__ import annotations

import signal
import sys
import threading
import warnings
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from orchestrator.environment import ending_signals

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping

T = TypeVar("T")

_received: list[int] = []


def received() -> int | None:
    """The exit code of the first signal that interrupted this command, or None."""
    return 128 + _received[0] if _received else None


@contextmanager
def interruptible() -> Iterator[None]:
    """While inside a signal interrupts whatever goes on. Outside of the main thread this does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _received.clear()
    complain = sys.unraisablehook
    before = {number: signal.signal(number, _interrupt) for number in ending_signals()}
    sys.unraisablehook = _unless_interrupted(complain)
    try:
        yield
    finally:
        sys.unraisablehook = complain
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def run(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """`asyncio.run`, unless a signal was received already. Raises KeyboardInterrupt then."""
    import asyncio

    if _received:
        raise KeyboardInterrupt
    with asyncio.Runner() as runner:
        runner.get_loop().set_exception_handler(_tell_unless_interrupted)
        return runner.run(work())


def _interrupt(number: int, frame: FrameType | None) -> None:
    _received.append(number)
    warnings.filterwarnings("ignore", message="coroutine .* was never awaited")
    raise KeyboardInterrupt


def _unless_interrupted(complain: Callable[[Any], Any]) -> Callable[[Any], None]:
    def hook(unraisable: Any) -> None:
        if not _received:
            complain(unraisable)

    return hook


def _tell_unless_interrupted(loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
    """What was cut off by a signal is no fault of its own."""
    if not _received:
        loop.default_exception_handler(dict(context))
