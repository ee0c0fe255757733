"""Privileges as the YAML, or JSON, in which a workflow declares them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from orchestrator.grants.privileges import Privilege

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
_WORDS = frozenset({"null", "true", "false", "yes", "no", "on", "off", "y", "n"})
"""Texts that some reader of YAML takes for something else (YAML 1.1 and 1.2, core schema)."""


def is_json(text: str) -> bool:
    """Whether a text is JSON, which is YAML as well: what is written into it has to be JSON, too."""
    try:
        json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError):
        return False
    return True


def scalar(text: str) -> str:
    """A text as a YAML scalar that can stand anywhere: plain where that is safe, else in quotes."""
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        return text
    if text.isprintable():
        return "'" + text.replace("'", "''") + "'"
    return '"' + "".join(map(_escaped, text)) + '"'


def inline(value: Any, *, as_json: bool = False) -> str:
    """A JSON value in one line: `{ select: shop.orders, columns: [id] }`, or the same as JSON."""
    if isinstance(value, dict):
        if not value:
            return "{}"
        return f"{{ {', '.join(pair(key, each, as_json=as_json) for key, each in value.items())} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(inline(each, as_json=as_json) for each in value)}]"
    if isinstance(value, str):
        return _json_text(value) if as_json else scalar(value)
    return json.dumps(value)


def pair(key: str, value: Any, *, as_json: bool = False) -> str:
    """`key: value` in one line."""
    return f"{inline(key, as_json=as_json)}: {inline(value, as_json=as_json)}"


def lines(privileges: Iterable[Privilege]) -> list[str]:
    """The items of a list under `privileges:`, without indentation: each key of a privilege in a line of its own."""
    return [
        ("- " if number == 0 else "  ") + pair(key, value)
        for privilege in privileges
        for number, (key, value) in enumerate(privilege.as_json().items())
    ]


def _escaped(character: str) -> str:
    """In double quotes: what cannot be printed by its number, in a form that every reader knows."""
    if character in '"\\':
        return "\\" + character
    if character.isprintable():
        return character
    number = ord(character)
    return f"\\x{number:02X}" if number < 256 else f"\\u{number:04X}" if number < 65536 else f"\\U{number:08X}"


def _json_text(text: str) -> str:
    """In double quotes, so that readers of JSON and of YAML read the same; JSON has no escape beyond four digits."""
    return "".join(
        character if character.isprintable() or ord(character) > 0xFFFF else f"\\u{ord(character):04x}"
        for character in json.dumps(text, ensure_ascii=False)
    )
