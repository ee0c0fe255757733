"""PostgreSQL values as JSON, from the text that the server sends (PostgreSQL manual, chapter 8).

Working on the text keeps what Python's types cannot hold: `infinity` as a date, years BC, 24:00. A `numeric` is always
its text, so that neither its scale nor a digit is lost, and its JSON type does not depend on its value.
Import it inside `run`: it needs psycopg.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

from psycopg import AsyncConnection
from psycopg.abc import Buffer
from psycopg.adapt import Loader
from psycopg.types.json import Jsonb

SESSION = {"datestyle": "ISO, MDY", "intervalstyle": "iso_8601", "bytea_output": "hex", "extra_float_digits": "1"}
"""Session settings that the texts depend on."""

_SHORT_OFFSET = re.compile(r"([+-]\d\d)$")


def float_to_json(text: str) -> float | str:
    """A number, or the text for `NaN`, `Infinity` and `-Infinity`, which JSON has not."""
    return text if text.lstrip("-") in ("NaN", "Infinity") else float(text)


def timestamp_to_json(text: str) -> str:
    """ISO 8601 with `T` and an offset in minutes. `infinity` and years BC stay as PostgreSQL writes them."""
    if text.endswith(("infinity", " BC")):
        return text
    return _SHORT_OFFSET.sub(r"\1:00", text.replace(" ", "T", 1)) if ":" in text else text


def bytea_to_json(text: str) -> str:
    """Base64 of the bytes, which arrive as `\\x` and hexadecimal digits."""
    return base64.b64encode(bytes.fromhex(text.removeprefix("\\x"))).decode()


_SPANS = ("int4", "int8", "num", "date", "ts", "tstz")
_RANGES = tuple(f"{span}{kind}" for span in _SPANS for kind in ("range", "multirange"))
_CONVERSIONS: dict[Callable[[str], Any], tuple[str, ...]] = {
    float_to_json: ("float4", "float8"),
    timestamp_to_json: ("timestamp", "timestamptz", "timetz"),
    bytea_to_json: ("bytea",),
    str: ("numeric", "date", "time", "interval", "uuid", "inet", "cidr", "record", *_RANGES),
}


def load_as_json(connection: AsyncConnection[Any]) -> None:
    """Make this connection return JSON values; arrays become lists of them."""
    for convert, names in _CONVERSIONS.items():
        loader = type("JsonLoader", (Loader,), {"load": _load(convert)})
        for name in names:
            connection.adapters.register_loader(name, loader)


def _load(convert: Callable[[str], Any]) -> Callable[[Loader, Buffer], Any]:
    def load(_self: Loader, data: Buffer) -> Any:
        return convert(bytes(data).decode())

    return load


def parameter(value: Any) -> Any:
    """A JSON value as a query parameter: objects and lists with objects become jsonb, other lists arrays.

    JSON has one kind of number: a list in which some are whole and some are not is an array of numeric.
    """
    if _holds_object(value):
        return Jsonb(value)
    if isinstance(value, list) and set(_kinds(value)) - {type(None)} == {int, float}:
        return _as_numeric(value)
    return value


def _kinds(value: list[Any]) -> Iterator[type]:
    for item in value:
        if isinstance(item, list):
            yield from _kinds(item)
        else:
            yield type(item)


def _as_numeric(value: Any) -> Any:
    if isinstance(value, list):
        return [_as_numeric(item) for item in value]
    return None if value is None else Decimal(repr(value))


def _holds_object(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(map(_holds_object, value)))
