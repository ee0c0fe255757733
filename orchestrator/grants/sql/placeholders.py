"""psycopg's placeholders in a statement, told without psycopg. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

_PLACEHOLDER = re.compile(r"%(?:(?:\(([^)]+)\).)|.)")
"""As psycopg reads them: it knows neither texts nor comments of SQL, and what ends a line belongs to none of them."""

_FORMATS = "sbt"


@dataclass(frozen=True, slots=True)
class Placeholders:
    """The names in a statement, or how many values by position; `wrong` is what is no placeholder at all."""

    names: frozenset[str] = frozenset()
    count: int = 0
    wrong: str = ""


def placeholders(sql: str) -> Placeholders:
    """What psycopg takes for a placeholder in a statement that it is given parameters with (psycopg, "Passing
    parameters to SQL queries"); `%%` is a percent sign."""
    names: dict[str, str] = {}
    count = 0
    for found in _PLACEHOLDER.finditer(sql):
        if found.group() == "%%":
            continue
        text, name = found.group(), found.group(1)
        if text == "%(" or text[-1] not in _FORMATS or names.get(name, text[-1]) != text[-1]:
            return Placeholders(frozenset(names), count, text)
        if name is None:
            count += 1
        else:
            names[name] = text[-1]
    return Placeholders(frozenset(names), count)
