"""Pieces of Markdown that GitHub's renderer and Python-Markdown read in the same way."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

_CODE = re.compile(r"(`+)(.+?)\1", re.DOTALL)


def code(text: str) -> str:
    """The text as code, also where backticks or the bars of tables are in it."""
    text = " ".join(text.split("\n"))
    if "`" in text or "|" in text:
        return f"<code>{html.escape(text, quote=False).replace('|', '&#124;').replace('`', '&#96;')}</code>"
    return f"`{text}`"


def unset(words: str, value: str) -> str:
    """Words of Python's about None in those of the reader's notation."""
    return re.sub(r"\bNone\b(?=[: ])", value, words)


def prose(text: str) -> str:
    """Words of a docstring as one paragraph, which may stand in a cell: nothing but code spans is read as markup."""
    joined = " ".join(text.split())
    rest, parts = 0, []
    for span in _CODE.finditer(joined):
        parts += [_plain(joined[rest : span.start()]), code(span[2])]
        rest = span.end()
    return "".join([*parts, _plain(joined[rest:])])


def paragraphs(text: str) -> str:
    """Words of a docstring, with its paragraphs."""
    return "\n\n".join(prose(part) for part in re.split(r"\n\s*\n", text.strip()))


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already; empty where there are no rows."""
    lines = ["| " + " | ".join(cell or " " for cell in row) + " |" for row in rows]
    return "\n".join([f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads), *lines]) if lines else ""


def fenced(language: str, text: str) -> str:
    """A block of code."""
    return f"```{language}\n{text.rstrip()}\n```"


def page(*parts: str) -> str:
    """The parts with a blank line between them; empty ones are left out."""
    return "\n\n".join(part.strip("\n") for part in parts if part.strip()) + "\n"


def slug(heading: str) -> str:
    """The anchor of a heading, by GitHub's rules."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _plain(text: str) -> str:
    escaped = html.escape(text, quote=False).replace("|", "&#124;")
    return re.sub(r"(?<!\w)([*_])|([*_])(?!\w)", r"\\\1\2", escaped)
