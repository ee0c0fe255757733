"""How things look on a terminal: sober tables, local times with their offset, marks for states.

Rich is imported when something is printed, never at the start of the command.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, TextIO, cast

from orchestrator.cli.display.printable import clean
from orchestrator.ledger.lease import LeaseState
from orchestrator.ledger.states import RunState, StepState
from orchestrator.presentation.terms import LEASE_MARKS as LEASE_MARKS
from orchestrator.presentation.terms import lasting as lasting
from orchestrator.presentation.terms import lease_words as lease_words
from orchestrator.presentation.terms import scope_words as scope_words
from orchestrator.presentation.terms import took as took

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment
    from rich.table import Table

PIPED_WIDTH = 400
"""Columns when nobody looks: wide enough that no line is folded and `grep` finds what it looks for."""

_PADDING = re.compile(r" +$", re.MULTILINE)

_STYLES: dict[str, str] = {
    RunState.RUNNING: "cyan",
    RunState.SUCCEEDED: "green",
    RunState.FAILED: "red",
    RunState.REFUSED: "red",
    RunState.CANCELLED: "yellow",
    RunState.INTERRUPTED: "yellow",
    RunState.WAITING: "yellow",
    StepState.SKIPPED: "dim",
    LeaseState.ISSUED: "cyan",
    LeaseState.REVOKING: "yellow",
    LeaseState.REVOKED: "green",
    LeaseState.EXPIRED: "green",
    LeaseState.ENDED: "",
    LeaseState.DENIED: "red",
}


def console(stream: TextIO | None = None) -> Console:
    """A console that obeys NO_COLOR and TERM, takes no text for markup, shows control characters instead of obeying
    them, and is wide where it is no terminal."""
    from rich.console import Console
    from rich.segment import Segment

    class Whole(Console):
        def on_broken_pipe(self) -> None:
            """Rich would end the process here; whoever prints decides what becomes of it."""
            raise

        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
            """Whatever is drawn comes through here; what Rich itself does to the terminal is marked as control."""
            for segment in super().render(renderable, options):
                yield segment if segment.control else Segment(clean(segment.text), segment.style)

    target = stream or sys.stdout
    width = None if target.isatty() else PIPED_WIDTH
    file = target if target.isatty() else cast("TextIO", _Unpadded(target))
    return Whole(file=file, width=width, highlight=False, markup=False, emoji=False, soft_wrap=False)


class _Unpadded:
    """A stream that nobody looks at: the spaces with which Rich fills lines up are left out."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(_PADDING.sub("", text))
        return len(text)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


def style_of(state: str) -> str:
    """The colour of a state, given with or without its mark; the word itself always says it too."""
    return _STYLES.get(state.rpartition(" ")[2], "")


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, fold: Sequence[str] = ()) -> Table:
    """A table without lines. Columns named in `fold` may be broken; the others stay whole, to be copied.

    The words in a column `STATE` have the colour of that state.
    """
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in headings:
        made.add_column(heading, no_wrap=heading not in fold, overflow="fold")
    for row in rows:
        styles = (style_of(cell) if heading == "STATE" else "" for heading, cell in zip(headings, row, strict=True))
        made.add_row(*(Text(clean(cell), style=style) for cell, style in zip(row, styles, strict=True)))
    return made


def facts(pairs: Iterable[tuple[str, str]]) -> Table:
    """Names and values under each other, without the empty ones."""
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    made.add_column(no_wrap=True, style="dim")
    made.add_column(overflow="fold")
    for name, value in pairs:
        if value:
            made.add_row(name, Text(clean(value)))
    return made


def local(moment: datetime | None) -> str:
    """`2026-03-02 12:00:05+07`: the local time with its offset, or `-`."""
    if moment is None:
        return "-"
    there = moment.astimezone()
    offset = there.strftime("%z")
    return there.strftime("%Y-%m-%d %H:%M:%S") + (offset[:3] if offset.endswith("00") else f"{offset[:3]}:{offset[3:]}")
