"""JSON, as a type."""

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
