"""What strangers can do to the process through its listener: hold a few connections for a few seconds, and no more.

uvicorn limits how long a connection may be idle between two requests. Here is what it lacks: a limit for a request that
does not come to its end, a bound on connections, and descriptors that are kept for the runs, which need them to reach
Vault and the databases, also to revoke.
"""

from __future__ import annotations

import asyncio
import logging
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from uvicorn.protocols.http.h11_impl import H11Protocol

from orchestrator.clock import Clock, SystemClock
from orchestrator.server.descriptors import reserve_of

log = logging.getLogger(__name__)

REQUEST_SECONDS = 15.0
"""From the connection, or from the answer before, to the end of the answer. Whatever is slower is cut off."""

MAX_CONNECTIONS = 64
"""With one more the oldest is dropped that is not being answered: who asks for health is answered before it is that."""

BACKLOG = 32
"""Connections that wait in the kernel. The event loop accepts as many in one go, before any of them is looked at."""

_TELL_SECONDS = 60.0

_silent = logging.getLogger(f"{__name__}.requests")
_silent.setLevel(logging.ERROR)
"""What is wrong with a request of a stranger is not worth a line in the log for each."""


class Seldom:
    """Tells the log of something that others can make happen as often as they like: once a minute, with the number."""

    def __init__(self, text: str, clock: Clock | None = None) -> None:
        self._text = text
        self._clock = clock or SystemClock()
        self._times = 0
        self._told: float | None = None

    def happened(self) -> None:
        """Once more."""
        self._times += 1
        now = self._clock.monotonic()
        if self._told is None or now - self._told >= _TELL_SECONDS:
            log.warning("%s (%d times)", self._text, self._times)
            self._told, self._times = now, 0


_dropped = Seldom("connections to the listener are dropped, which are too many or too slow")
_exhausted = Seldom("no connection can be accepted: this process has too many open files")


class BoundedProtocol(H11Protocol):
    """uvicorn's protocol with the limits of this module. One for each connection."""

    most: ClassVar[int | None] = None
    """Connections at once, `MAX_CONNECTIONS` where it is None."""

    patient: ClassVar[bool] = False
    """Whether an answer may take longer than a request."""

    _deadline: asyncio.TimerHandle | None = None

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.logger = _silent

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take it, or refuse it where too few descriptors are left."""
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        connected = transport.get_extra_info("socket")
        # The lowest free number is given out, so that all below are in use.
        if connected is not None and connected.fileno() >= limit - reserve_of(limit):
            _dropped.happened()
            transport.abort()
            return
        super().connection_made(transport)
        in_order = _in_order.setdefault(type(self), {})
        in_order[self] = None
        self._begin_deadline()
        if len(in_order) > (self.most or MAX_CONNECTIONS):
            next((each for each in in_order if not each.is_answered), self).cut_off()

    @property
    def is_answered(self) -> bool:
        """Whether the answer to a request is being made or sent."""
        return self.cycle is not None and not self.cycle.response_complete

    def on_response_complete(self) -> None:
        """The next request has its own time."""
        super().on_response_complete()
        self._begin_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._end_deadline()
        _in_order.get(type(self), {}).pop(self, None)
        if self.transport is not None:
            super().connection_lost(exc)

    def cut_off(self) -> None:
        """End it at once, whatever is on its way."""
        _dropped.happened()
        self._end_deadline()
        _in_order.get(type(self), {}).pop(self, None)
        self.transport.abort()

    def _late(self) -> None:
        if self.patient and self.is_answered:
            self._begin_deadline()
        else:
            self.cut_off()

    def _begin_deadline(self) -> None:
        self._end_deadline()
        if not self.transport.is_closing():
            self._deadline = self.loop.call_later(REQUEST_SECONDS, self._late)

    def _end_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


_in_order: dict[type[BoundedProtocol], dict[BoundedProtocol, None]] = {}
"""The open connections of each listener, oldest first."""


@contextmanager
def exhaustion_told_seldom() -> Iterator[None]:
    """asyncio tells of each connection that it cannot accept, and of as many a second as may wait."""
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if isinstance(context.get("exception"), OSError) and "accept" in str(context.get("message")):
            _exhausted.happened()
        elif before is not None:
            before(loop, context)
        else:
            loop.default_exception_handler(context)

    loop.set_exception_handler(handle)
    try:
        yield
    finally:
        loop.set_exception_handler(before)
