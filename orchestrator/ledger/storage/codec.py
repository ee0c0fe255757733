"""Events and JSON: between Python's types and the text that the ledger stores.

Canonical JSON: keys sorted, no spaces, ASCII only (everything else escaped), no NaN or infinity.

Values that people may want to drop some day, inputs and outputs, are not in the text of an event, over which the chain
is made, but beside it. The text has a digest of each, over a salt that is kept and dropped together with the value: so
what was dropped cannot be guessed either.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import secrets
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


class ValueKind(StrEnum):
    """Which values are dropped together."""

    INPUTS = "inputs"
    """What a run, task or call was given, as far as it was recorded, and what policies were asked about it."""
    OUTPUTS = "outputs"
    """What steps gave."""


KEPT_BESIDE: Mapping[str, Mapping[str, ValueKind]] = {
    "run.started": {"inputs": ValueKind.INPUTS, "call": ValueKind.INPUTS},
    "task.opened": {"inputs": ValueKind.INPUTS, "context": ValueKind.INPUTS},
    "decision": {"input": ValueKind.INPUTS, "input_digest": ValueKind.INPUTS},
    "notice": {"text": ValueKind.INPUTS},
    "run.notified": {"text": ValueKind.INPUTS},
    "step.finished": {"outputs": ValueKind.OUTPUTS},
}
"""The fields whose values lie beside the event, by its kind."""

_NOTHING: Mapping[str, JsonValue] = {"input_digest": "", "text": "", "outputs": None}
"""What is read of a field whose value was dropped; of all others an empty object."""

_KEPT = "kept"
"""The member of an event's text that has the digests, by field."""

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


def event_to_text(event: Event) -> tuple[str, str | None]:
    """The event's canonical JSON, and that of the values beside it, if it has any.

    Raises LedgerError where a value is not JSON, never showing it.
    """
    data, beside = dict(event_to_json(event)), {}
    try:
        for name in KEPT_BESIDE.get(event.kind, ()):
            if data[name] != _nothing(name):
                beside[name] = {"salt": secrets.token_hex(16), "value": data.pop(name)}
        if not beside:
            return canonical_json(data), None
        digests = {name: _digest(each["salt"], each["value"]) for name, each in beside.items()}
        return canonical_json({**data, _KEPT: digests}), canonical_json(beside)
    except ValueError as error:
        raise LedgerError(f"event {event.kind} holds a number that JSON cannot express") from error


def _nothing(name: str) -> JsonValue:
    return _NOTHING.get(name, {})


def _digest(salt: object, value: JsonValue) -> str:
    return hashlib.sha256(f"{salt}:{canonical_json(value)}".encode()).hexdigest()


def with_values(data: JsonObject, kept: str | None) -> tuple[JsonObject, frozenset[str]]:
    """The data of an event with the values beside it, and the names of those that were dropped.

    Raises ValueError where `kept` is not what was kept.
    """
    digests = data.get(_KEPT)
    if not isinstance(digests, Mapping):
        if kept is not None:
            raise ValueError("there are values beside an event that has none")
        return data, frozenset()
    beside = json.loads(kept) if kept is not None else {}
    if not isinstance(beside, dict) or not beside.keys() <= digests.keys():
        raise ValueError("there are other values beside an event than it had")
    values: dict[str, JsonValue] = {}
    for name, digest in digests.items():
        if name not in beside:
            values[name] = _nothing(name)
        elif not isinstance(beside[name], dict) or set(beside[name]) != {"salt", "value"}:
            raise ValueError("a value beside an event is none")
        elif _digest(beside[name]["salt"], beside[name]["value"]) != digest:
            raise ValueError("a value beside an event is another one")
        else:
            values[name] = beside[name]["value"]
    rest = {name: value for name, value in data.items() if name != _KEPT}
    return {**rest, **values}, frozenset(digests.keys() - beside.keys())


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
