"""What may reach a terminal or a log of lines: no character that is not seen, or that moves or colours what is seen.

Words of services, databases, programs and workflow files are shown here; none of them may write over what stands on the
screen, set a title or the clipboard, or begin a line that looks like ours. JSON escapes by itself and is left alone.
"""

from __future__ import annotations

import re

_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 and C1 without tab and newline: ESC, CSI, OSC, CR among them
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # what turns the direction of writing (UAX #9)
    "\u2028\u2029]"
)


def clean(text: str) -> str:
    r"""A text of one or several lines with control characters as `\x1b`, `\u202e`."""
    return text if text.isascii() and text.isprintable() else _HIDDEN.sub(_escaped, text)


def one_line(text: str) -> str:
    r"""The same with breaks of lines as `\n`, for what must stay in its line."""
    return clean(text).replace("\n", "\\n")


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    known = {"\r": "\\r", "\x07": "\\a", "\x08": "\\b"}
    return known.get(match[0]) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")
