"""`run --follow`: what programs of steps write, while they do, without secrets and with the name of their step.

Neither a fast program nor a slow terminal holds up the run: what is written is handed to a thread, in a queue with a
bound, and what is too much is left out and counted. Nothing of it is kept.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

from orchestrator.cli.display.printable import one_line

if TYPE_CHECKING:
    from orchestrator.redaction.live_lines import LiveLines
    from orchestrator.redaction.redactor import Redactor

PAUSE = 0.3
"""Seconds without anything new after which a program is taken to pause."""
MOST_QUEUED = 128 * 1024
"""Bytes of one stream that wait to be shown."""
PATIENCE = 2.0
"""Seconds that the end of a run waits for a terminal that takes nothing more."""

Stream = tuple[str, int]
"""A step, or the instance of one for an item of a list, and a descriptor of its program."""


@dataclass(slots=True)
class _Item:
    """A line to be told as it is, or what a program wrote: nothing where it has ended, `lost` bytes were left out."""

    line: str = ""
    stream: Stream | None = None
    data: bytes = b""
    lost: int = 0


@dataclass(slots=True)
class StepOutput:
    """Shows lines in the order in which they come. `tell` is called in the thread alone, and may block.

    While inside the context `printed` and `line` may be called; they never wait.
    """

    redactor: Redactor
    tell: Callable[[str], None]
    now: Callable[[], float] = time.monotonic
    _queue: deque[_Item] = field(default_factory=deque)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _queued: Counter[Stream] = field(default_factory=Counter)
    _lost: dict[Stream, int] = field(default_factory=dict)
    _streams: dict[Stream, tuple[LiveLines, float]] = field(default_factory=dict)
    _thread: threading.Thread | None = None
    _closed: bool = False
    _telling: float | None = None
    """Since when the line is being told that is."""

    def __enter__(self) -> StepOutput:
        self._thread = threading.Thread(target=self._work, name="output of steps", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Wait until all is shown, or until nobody takes anything more."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        assert self._thread is not None
        while self._thread.is_alive():
            self._thread.join(PATIENCE / 10)
            since = self._telling  # of how long it takes to look for secrets nobody has to lose patience: it is bounded
            if since is not None and self.now() - since >= PATIENCE:
                break
        with self._changed:
            self._queue.clear()

    def line(self, text: str) -> None:
        """A line that holds no secret."""
        self._put(_Item(line=text))

    def printed(self, step: str, descriptor: int, data: bytes) -> None:
        """What a program wrote; nothing where it will write nothing more."""
        stream = (step, descriptor)
        with self._changed:
            most = MOST_QUEUED // 2 if stream in self._lost else MOST_QUEUED
            if data and self._queued[stream] + len(data) > most:
                self._lost[stream] = self._lost.get(stream, 0) + len(data)
                return
        if lost := self._lost.pop(stream, 0):
            self._put(_Item(stream=stream, lost=lost))
        self._put(_Item(stream=stream, data=data))

    def _put(self, item: _Item) -> None:
        with self._changed:
            self._queue.append(item)
            if item.stream is not None:
                self._queued[item.stream] += len(item.data)
            self._changed.notify()

    def _work(self) -> None:
        looked = self.now()
        while (item := self._next()) is not None:
            if item.line:
                self._say([item.line])
            elif item.stream is not None:
                self._take(item.stream, item)
            if self.now() - looked >= PAUSE:
                looked = self.now()
                self._tell_what_paused(looked)
        for stream, (lines, _) in self._streams.items():
            self._say(_named(stream, lines.end()))

    def _next(self) -> _Item | None:
        """What is to be done next; nothing in particular after a pause; None at the end."""
        with self._changed:
            if not self._queue and not self._closed:
                waits = any(lines.waits for lines, _ in self._streams.values())
                self._changed.wait(PAUSE if waits else None)
            if self._queue:
                item = self._queue.popleft()
                if item.stream is not None:
                    self._queued[item.stream] -= len(item.data)
                return item
            return None if self._closed else _Item()

    def _take(self, stream: Stream, item: _Item) -> None:
        lines = self._streams[stream][0] if stream in self._streams else self._new()
        self._streams[stream] = lines, self.now()
        if item.lost:
            self._say(_named(stream, [*lines.gap(), f"[{item.lost} bytes are not shown: they came too fast]"]))
        elif item.data:
            self._say(_named(stream, lines.feed(item.data)))
        else:
            self._say(_named(stream, lines.end()))
            del self._streams[stream]

    def _new(self) -> LiveLines:
        from orchestrator.redaction.live_lines import LiveLines

        return LiveLines(self.redactor)

    def _tell_what_paused(self, now: float) -> None:
        for stream, (lines, last) in list(self._streams.items()):
            if lines.waits and now - last >= PAUSE:
                self._say(_named(stream, lines.pause()))

    def _say(self, lines: Iterable[str]) -> None:
        for line in lines:
            self._telling = self.now()
            self.tell(line)
            self._telling = None


def _named(stream: Stream, lines: Iterable[str]) -> list[str]:
    return [f"{stream[0]} | {one_line(line)}".rstrip() for line in lines]


def writing_to(stream: TextIO) -> Callable[[str], None]:
    """What writes lines to a stream until nobody takes them any more.

    Past the stream's own buffer: where it is stuck, this process can still end.
    """
    descriptor, encoding = stream.fileno(), stream.encoding
    broken = False

    def write(line: str) -> None:
        nonlocal broken
        data = f"{line}\n".encode(encoding or "utf-8", "replace")
        while data and not broken:
            try:
                data = data[os.write(descriptor, data) :]
            except BlockingIOError:
                select.select([], [descriptor], [])
            except OSError:
                broken = True

    return write
