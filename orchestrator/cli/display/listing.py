"""Lists as most people and every script want them: aligned columns, at once.

Rich draws what a terminal can show: colours, and cells that are folded to its width. Where nobody looks neither is
wanted, and importing it would take longer than the answer.
"""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Sequence

from orchestrator.cli.display import terminal
from orchestrator.cli.display.printable import clean

_GAP = "  "


def width() -> int:
    """Columns that a list may take."""
    return terminal.PIPED_WIDTH if _is_piped() else terminal.console().width


def print_list(headings: Sequence[str], rows: Sequence[Sequence[str]], *, fold: Sequence[str] = ()) -> None:
    """Print a table without lines. Where it has to be folded, only columns named in `fold` are."""
    if _is_piped():
        lines = _aligned([headings, *rows])
        if all(_width(line) <= terminal.PIPED_WIDTH for line in lines):
            sys.stdout.write("".join(f"{line}\n" for line in lines))
            return
    terminal.console().print(terminal.table(headings, rows, fold=fold))


def print_line(words: str, *, style: str | None = None) -> None:
    """Print a line of words; a style is for terminals."""
    if _is_piped():
        sys.stdout.write(f"{clean(words)}\n")
    else:
        terminal.console().print(words, style=style)


def _is_piped() -> bool:
    """Whether nobody looks. Rich's own variables may say that somebody does all the same."""
    return not sys.stdout.isatty() and not (os.environ.get("FORCE_COLOR") or os.environ.get("TTY_COMPATIBLE"))


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines in which the columns stand under each other; a cell may have several lines."""
    cells = [[clean(cell).expandtabs(8).split("\n") for cell in row] for row in rows]
    widths = [max(_width(line) for row in cells for line in row[column]) for column in range(len(cells[0]))]
    lines: list[str] = []
    for row in cells:
        for number in range(max(map(len, row))):
            parts = [cell[number] if number < len(cell) else "" for cell in row]
            lines.append(_GAP.join(_padded(part, wide) for part, wide in zip(parts, widths, strict=True)).rstrip())
    return lines


def _padded(text: str, wide: int) -> str:
    return text + " " * (wide - _width(text))


def _width(text: str) -> int:
    """Columns that a terminal gives a text: two for East Asian wide characters, none for combining ones."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
