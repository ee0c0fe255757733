"""Privileges as the YAML in which a workflow declares them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from orchestrator.grants.privileges import ALL_COLUMNS, Bound, Constant, Privilege, RowLimit, qualified

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
_WORDS = frozenset({"null", "true", "false", "yes", "no", "on", "off", "y", "n"})
"""Texts that some reader of YAML takes for something else (YAML 1.1 and 1.2, core schema)."""


def scalar(text: str) -> str:
    """A text as a YAML scalar that can stand anywhere: plain where that is safe, else in quotes."""
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        return text
    if text.isprintable():
        return "'" + text.replace("'", "''") + "'"
    return '"' + "".join(map(_escaped, text)) + '"'


def column_list(columns: Sequence[str]) -> str:
    """`[comment, id]`, or `all`."""
    return "all" if tuple(columns) == ALL_COLUMNS else f"[{', '.join(map(scalar, columns))}]"


def parts(privilege: Privilege) -> list[str]:
    """`select: shop.orders`, `columns: [id]`, `where: { customer_id: 7 }`: one `key: value` each."""
    name = qualified(privilege.schema, privilege.name, function=privilege.verb == "execute")
    found = [f"{privilege.verb}: {scalar(name)}"]
    if privilege.columns:
        found.append(f"columns: {column_list(privilege.columns)}")
    if privilege.where:
        limits = ", ".join(f"{scalar(limit.column)}: {_value(limit)}" for limit in privilege.where)
        found.append(f"where: {{ {limits} }}")
    return found


def lines(privileges: Iterable[Privilege]) -> list[str]:
    """The items of a list under `privileges:`, without indentation."""
    return [
        ("- " if number == 0 else "  ") + part
        for privilege in privileges
        for number, part in enumerate(parts(privilege))
    ]


def flow(privileges: Iterable[Privilege]) -> str:
    """The same in one line: `[{ select: shop.orders, columns: [id] }]`."""
    return f"[{', '.join('{ ' + ', '.join(parts(privilege)) + ' }' for privilege in privileges)}]"


def _value(limit: RowLimit) -> str:
    value: Constant | str = limit.value.expression if isinstance(limit.value, Bound) else limit.value
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int) else scalar(value)


def _escaped(character: str) -> str:
    """In double quotes: what cannot be printed by its number, in a form that every reader knows."""
    if character in '"\\':
        return "\\" + character
    if character.isprintable():
        return character
    number = ord(character)
    return f"\\x{number:02X}" if number < 256 else f"\\u{number:04X}" if number < 65536 else f"\\U{number:08X}"
