"""JSON to and from a service, so that it has one meaning only (RFC 7493, I-JSON)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

from orchestrator.jsontypes import JsonObject, JsonValue

MAX_QUESTION_BYTES = 1 << 20
"""The longest question; the engine in process has the same limit."""


class NotReadable(ValueError):
    """The text is not JSON, not an object, or can be read in more than one way. The message quotes none of it."""


def read_object(data: bytes) -> JsonObject:
    """The object that these bytes are. Raises NotReadable."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise NotReadable("it is not UTF-8") from None
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_number, parse_float=_finite)
        json.dumps(value, ensure_ascii=False).encode()
    except NotReadable:
        raise
    except UnicodeEncodeError:
        raise NotReadable("it holds half of a surrogate pair") from None
    except (ValueError, RecursionError):
        raise NotReadable("it is not JSON") from None
    if not isinstance(value, dict):
        raise NotReadable("it is not a JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise NotReadable("an object of it has a key twice")
    return made


def _finite(text: str) -> float:
    number = float(text)
    return number if number - number == 0 else _no_number(text)


def _no_number(name: str) -> NoReturn:
    raise NotReadable("it holds a number that JSON does not know")


def write_question(document: JsonValue, *, exact_bits: int) -> bytes:
    """The document as JSON. Raises ValueError, which says what it `holds` or `is`, where it cannot be asked exactly.

    Whole numbers of more than `exact_bits` bits are among that: who reads them as floating point takes two customers
    for one (RFC 7493, 2.2).
    """
    try:
        _check_numbers(document, exact_bits)
        data = json.dumps(document, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        raise ValueError("holds a text that is not Unicode (half of a surrogate pair)") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    if len(data) > MAX_QUESTION_BYTES:
        raise ValueError(f"is longer than {MAX_QUESTION_BYTES} bytes")
    return data


def _check_numbers(value: JsonValue, bits: int) -> None:
    if isinstance(value, float) and not (value - value == 0):
        raise ValueError("holds a number that JSON does not know")
    if isinstance(value, int) and value.bit_length() > bits:
        raise ValueError(f"holds a whole number that cannot be compared exactly (of more than {bits} bits)")
    if isinstance(value, Mapping):
        value = list(value.values())
    for part in value if isinstance(value, list | tuple) else ():
        _check_numbers(part, bits)
