"""What a grant sends to the path that issues it: declared names, and values that are on record."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field, WithJsonSchema
from pydantic.config import JsonDict

from orchestrator.jsontypes import JsonObject, JsonValue

LONGEST_TEXT = 4096
"""Characters of one text, once it is bound."""
MOST_TEXTS = 100
"""In one list."""


def _declared(value: Any) -> JsonValue:
    return _checked("it", value)


_TEXT: JsonDict = {"type": "string", "maxLength": LONGEST_TEXT}
_TEXTS: JsonDict = {"type": "array", "items": _TEXT, "minItems": 1, "maxItems": MOST_TEXTS}
_SCHEMA: JsonDict = {"anyOf": [{"type": "boolean"}, {"type": "number"}, _TEXT, _TEXTS]}
_Value = Annotated[Any, AfterValidator(_declared), WithJsonSchema(_SCHEMA)]
_Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_-]{0,63}$")]


def _one_of_each(value: dict[str, JsonValue]) -> dict[str, JsonValue]:
    if len({name.lower() for name in value}) != len(value):
        raise ValueError("Vault does not tell names apart by upper and lower case: each may be there once")
    return value


Parameters = Annotated[dict[_Name, _Value], Field(min_length=1, max_length=50), AfterValidator(_one_of_each)]
"""Texts, numbers, truth values and lists of texts by name; texts may be `${{ }}` expressions."""


def checked_parameters(bound: Mapping[str, Any]) -> JsonObject:
    """The parameters with what the expressions gave. Raises ValueError, which names the one that is wrong."""
    return {name: _checked(f"`{name}`", value) for name, value in bound.items()}


def _checked(name: str, value: Any) -> JsonValue:
    if isinstance(value, bool | int | float) and math.isfinite(value):
        return value
    if isinstance(value, str):
        return _checked_text(name, value)
    if isinstance(value, list) and 0 < len(value) <= MOST_TEXTS and all(isinstance(each, str) for each in value):
        return [_checked_text(name, each) for each in value]
    raise ValueError(f"{name} is not a text, a number, a truth value or a list of texts")


def _checked_text(name: str, text: str) -> str:
    if len(text) > LONGEST_TEXT or "\0" in text or any("\ud800" <= char <= "\udfff" for char in text):
        raise ValueError(f"{name} is longer than {LONGEST_TEXT} characters, or holds one that no text may have")
    return text
