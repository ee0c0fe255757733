"""Runs as they go on, sent to browsers as server-sent events.

One task of the process looks at the ledger, for all who watch: once a second, by one statement, how far their runs
are. A part of a page is made anew where something has happened, once for everybody who watches that run. Who is slow
gets the newest state and misses those between. A stream ends when its run has, or when the browser goes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from starlette.responses import Response, StreamingResponse

from orchestrator.errors import LedgerError
from orchestrator.ledger.types import LedgerReader

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""Between two looks at the ledger."""

TICK_LOOKS = 5
"""After so many looks without anything new a part is made all the same: its bars grow with the time."""

ALIVE_SECONDS = 15.0
"""After so long without anything to say a comment is sent, so that a browser that is gone is noticed."""

NOT_ANY_MORE = '<p class="trouble" role="alert">Nobody is logged in here any more: load the page anew.</p>'

OVER = b"event: over\ndata: over\n\n"
"""The browser closes the stream, and does not come again."""

MOST_STREAMS = 48
"""Streams of a process. Who comes later is asked to come again, and has the page as it was made."""


@dataclass(frozen=True, slots=True)
class Part:
    """The changing part of a run's page. `over`: nothing will change any more."""

    html: str
    over: bool


@dataclass(slots=True)
class _Watched:
    """A run that somebody watches. `version` counts what was made of it."""

    watchers: int = 0
    position: int = -1
    looks: int = 0
    version: int = 0
    part: Part | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class Live:
    """Makes and hands out the parts. `make` is called in a thread; None from it says that there is no such run."""

    def __init__(self, reader: LedgerReader, make: Callable[[str], Part | None]) -> None:
        self._reader = reader
        self._make = make
        self._watched: dict[str, _Watched] = {}
        self._streams = 0
        self._looking: asyncio.Task[None] | None = None
        self._closed = asyncio.Event()

    def stream(self, run_id: str, may_look: Callable[[], bool] = lambda: True) -> Response:
        """What happens to a run from now on, for as long as they may look who asked."""
        if self._closed.is_set() or self._streams >= MOST_STREAMS:
            return Response(status_code=503, headers={"Retry-After": "30"})
        return StreamingResponse(self._events(run_id, may_look), media_type="text/event-stream")

    async def aclose(self) -> None:
        """End all streams."""
        self._closed.set()
        for each in self._watched.values():
            each.changed.set()
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])

    async def _events(self, run_id: str, may_look: Callable[[], bool]) -> AsyncIterator[bytes]:
        seen = 0
        async with self._watching(run_id) as watched:
            yield b"retry: 2000\n\n"
            while not self._closed.is_set():
                changed = watched.changed
                if not may_look():
                    yield message(NOT_ANY_MORE) + OVER
                    return
                if watched.version > seen and watched.part is not None:
                    seen, part = watched.version, watched.part
                    yield message(part.html)
                    if part.over:
                        yield OVER
                        return
                    continue
                try:
                    async with asyncio.timeout(ALIVE_SECONDS):
                        await changed.wait()
                except TimeoutError:
                    yield b": still there\n\n"

    @asynccontextmanager
    async def _watching(self, run_id: str) -> AsyncIterator[_Watched]:
        watched = self._watched.setdefault(run_id, _Watched())
        watched.watchers += 1
        self._streams += 1
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look(), name="pages that are watched")
        try:
            yield watched
        finally:
            watched.watchers -= 1
            self._streams -= 1
            if not watched.watchers:
                self._watched.pop(run_id, None)

    async def _look(self) -> None:
        """Until nobody watches any more."""
        while self._watched and not self._closed.is_set():
            try:
                await self._look_once()
            except LedgerError as error:
                log.warning("pages that are watched stand still: %s", error.message)
            except Exception:  # the others must not stand still with it
                log.exception("pages that are watched stand still")
            await asyncio.sleep(LOOK_SECONDS)

    async def _look_once(self) -> None:
        positions = await asyncio.to_thread(self._reader.positions, list(self._watched))
        for run_id, watched in list(self._watched.items()):
            position = positions.get(run_id, 0)
            watched.looks += 1
            if position == watched.position and watched.looks < TICK_LOOKS:
                continue
            if watched.part is not None and watched.part.over:
                continue
            made = await asyncio.to_thread(self._make, run_id)
            watched.part = made or Part("", over=True)
            watched.position, watched.looks = position, 0
            watched.version += 1
            told, watched.changed = watched.changed, asyncio.Event()
            told.set()


def message(html: str) -> bytes:
    """An event without a name, of which htmx takes the text for the element that listens."""
    return ("\n".join(f"data: {line}" for line in html.splitlines()) + "\n\n").encode()
