"""Which types the values of a statement's parameters have when they are sent: functions and operators depend on it.

psycopg sends a text without a type, so that the server finds out; a number, a truth value and an object with the
type that fits the value (psycopg manual, "Adaptation of data between Python and PostgreSQL types").
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.grants.sql.parsing import parameter_names
from orchestrator.inference.statements import UNKNOWN

Types = Sequence[tuple[str, ...]]
"""For each `$n` the types that its value may have, the likeliest first; one where it is known."""


@dataclass(frozen=True, slots=True)
class Later:
    """A value that only the run knows, of a type that may be known (`integer`, `number`, `boolean`, ...)."""

    kind: str = ""


_INTEGERS = ("int2", "int4", "int8", "numeric")
_ARRAYS = ("_int2", "_int4", "_int8", "_numeric", "_float8", "_bool", "_text")
_KINDS = {
    "string": (UNKNOWN,),
    "integer": _INTEGERS,
    "number": ("float8", *_INTEGERS),
    "boolean": ("bool",),
    "array": (UNKNOWN, *_ARRAYS, "jsonb"),
    "object": ("jsonb",),
}
_ANYTHING = (UNKNOWN, *_INTEGERS, "float8", "bool", "jsonb", *_ARRAYS)


def types_of(sql: str, values: object) -> list[tuple[str, ...]]:
    """The possible types of each placeholder of psycopg's, in the order of their numbers.

    `values` is a mapping or a sequence as psycopg takes it, with `Later` for what is not known yet.
    """
    names = parameter_names(sql)
    if isinstance(values, Mapping):
        return [_types(values[name]) if name in values else _ANYTHING for name in names]
    if isinstance(values, Sequence) and not isinstance(values, str):
        return [_types(values[number]) if number < len(values) else _ANYTHING for number in range(len(names))]
    return [_ANYTHING] * len(names)


def same_types(types: Types) -> Iterator[tuple[str, ...]]:
    """Choices of one type for each parameter: the likeliest of all, then the next of all, and so on."""
    for number in range(max((len(each) for each in types), default=1)):
        yield tuple(each[min(number, len(each) - 1)] for each in types)


def _types(value: object) -> tuple[str, ...]:
    match value:
        case Later():
            return _KINDS.get(value.kind, _ANYTHING)
        case bool():
            return ("bool",)
        case int():
            return (_integer(value),)
        case float():
            return ("float8",)
        case Mapping():
            return ("jsonb",)
        case list() | tuple():
            return _list(value)
        case _:
            return (UNKNOWN,)


def _integer(value: int) -> str:
    bits = (value if value >= 0 else ~value).bit_length()
    return "int2" if bits < 16 else "int4" if bits < 32 else "int8" if bits < 64 else "numeric"


def _list(values: Sequence[object]) -> tuple[str, ...]:
    if any(isinstance(each, Mapping) for each in values):
        return ("jsonb",)
    kinds = [_types(each) for each in values if each is not None]
    if not kinds or any(len(kind) > 1 or kind[0] == UNKNOWN or kind[0].startswith("_") for kind in kinds):
        return (UNKNOWN, *_ARRAYS) if any(isinstance(each, Later) for each in values) else (UNKNOWN,)
    widest = max((kind[0] for kind in kinds), key=lambda name: _WIDTHS.get(name, 0))
    return (f"_{widest}",)


_WIDTHS = {"int2": 1, "int4": 2, "int8": 3, "numeric": 4, "float8": 5}
