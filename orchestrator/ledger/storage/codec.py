"""Events and JSON: between Python's types and the text that the ledger stores.

Canonical JSON: keys sorted, no spaces, ASCII only (everything else escaped), no NaN or infinity.
"""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from orchestrator.errors import LedgerError
from orchestrator.jsontypes import JsonObject, JsonValue
from orchestrator.ledger.events import Event
from orchestrator.ledger.storage.times import text_to_time, time_to_text

T = TypeVar("T")
Decoder = Callable[[JsonValue], Any]

EVENT_TYPES: Mapping[str, type[Event]] = {event_type.kind: event_type for event_type in get_args(Event)}
"""Every type of event by its kind."""

FIELDS = {
    kind: tuple(field.name for field in dataclasses.fields(event_type)) for kind, event_type in EVENT_TYPES.items()
}
"""The names of each kind's fields."""


_PLAIN = frozenset({str, int, float, bool, types.NoneType})
"""What is its own JSON: most fields of most events."""


def _plain(value: object) -> dict[str, JsonValue] | list[JsonValue]:
    """Mappings and sequences that are neither dict, list nor tuple, for the encoder."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return list(value)
    raise TypeError(f"a {type(value).__name__} is not JSON")


_encoder = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False, default=_plain)


def canonical_json(value: JsonValue) -> str:
    """The one text of a JSON value. Raises ValueError for NaN and infinity."""
    return _encoder.encode(value)


def event_to_json(event: Event) -> JsonObject:
    """All fields of the event as JSON values. Raises LedgerError where a value is not JSON, never showing it."""
    values = ((name, getattr(event, name)) for name in FIELDS[event.kind])
    return {name: each if type(each) in _PLAIN else _to_json(each, f"{event.kind} {name}") for name, each in values}


def event_to_text(event: Event) -> str:
    """The event's canonical JSON. Raises LedgerError where a value is not JSON, never showing it."""
    try:
        return canonical_json(event_to_json(event))
    except ValueError as error:
        raise LedgerError(f"event {event.kind} holds a number that JSON cannot express") from error


def event_from_json(kind: str, data: JsonObject) -> Event:
    """The inverse of `event_to_json`. A field with a default may be missing; anything unknown raises LedgerError."""
    event_type = EVENT_TYPES.get(kind)
    hint = (
        "The ledger was written by a newer version, or by something else: upgrade, then run `orchestrator runs verify`."
    )
    if event_type is None:
        raise LedgerError(f"no event is called {kind!r}", hint=hint)
    decoders = _decoders(kind)
    try:
        return event_type(**{name: decoders[name](value) for name, value in data.items()})
    except (KeyError, TypeError, ValueError) as error:
        raise LedgerError(f"an event {kind} in the ledger does not have the fields of its kind", hint=hint) from error


def _to_json(value: object, where: str) -> JsonValue:
    if isinstance(value, StrEnum):
        return value.value
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, datetime):
        return time_to_text(value)
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise LedgerError(f"event {where}: a key is not a string, so it cannot be recorded as JSON")
        return {key: _to_json(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [_to_json(item, where) for item in value]
    raise LedgerError(f"event {where}: a {type(value).__name__} is not JSON and cannot be recorded")


@cache
def _decoders(kind: str) -> Mapping[str, Decoder]:
    hints = get_type_hints(EVENT_TYPES[kind])
    return {name: _decoder(hints[name]) for name in FIELDS[kind]}


def _decoder(hint: object) -> Decoder:
    """How to read a field of this type from JSON. A union with None reads None as None."""
    if get_origin(hint) in (Union, types.UnionType) and len(get_args(hint)) == 2 and type(None) in get_args(hint):
        inner = _decoder(next(part for part in get_args(hint) if part is not type(None)))
        return lambda value: None if value is None else inner(value)
    if hint is datetime:
        return lambda value: text_to_time(_checked(value, str))
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return lambda value: hint(_checked(value, str))
    if get_origin(hint) is tuple:
        return lambda value: tuple(_checked(value, list))
    if hint in (str, int, bool):
        return lambda value: _checked(value, hint)
    if get_origin(hint) is Mapping or (isinstance(hint, type) and issubclass(hint, Mapping)):
        return lambda value: _checked(value, dict)
    return lambda value: value


def _checked(value: object, expected: type[T]) -> T:
    if not isinstance(value, expected):
        raise TypeError(f"expected {expected.__name__}, found {type(value).__name__}")
    return value
