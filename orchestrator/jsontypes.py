"""JSON, as a type, and how its values and their number are written in a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

JsonScalar = str | int | float | bool | None
JsonValue = JsonScalar | Sequence["JsonValue"] | Mapping[str, "JsonValue"]
JsonObject = Mapping[str, JsonValue]


def text_of(value: str | bool | int | float) -> str:
    """A scalar as text: integers in digits, other numbers in the fewest digits that give them back, `true`, `false`."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def counted(number: int, noun: str, plural: str = "") -> str:
    """`1 step`, `0 steps`, `1,200 steps`; `plural` where that is not the noun with an `s`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def being(number: int, noun: str, plural: str = "") -> str:
    """`1 step is`, `2 steps are`."""
    return f"{counted(number, noun, plural)} {'is' if number == 1 else 'are'}"
