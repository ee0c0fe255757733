"""Every event survives JSON, prefixes find what they should, and a chain breaks where it was touched."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from enum import StrEnum
from typing import Any, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import LedgerError
from orchestrator.ledger.reading.newest_first import after_prefix
from orchestrator.ledger.storage.codec import (
    EVENT_TYPES,
    KEPT_BESIDE,
    canonical_json,
    event_from_json,
    event_to_json,
    event_to_text,
    with_values,
)
from orchestrator.ledger.storage.times import text_to_time, time_to_text

zones = st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=45)), timezone(timedelta(hours=-11))])
times = st.datetimes(min_value=datetime(1970, 1, 2), max_value=datetime(2200, 1, 1), timezones=zones)  # noqa: DTZ001 (hypothesis adds the zone)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Values for a field of an event."""
    by_type = {
        str: st.text(),
        int: st.integers(),
        bool: st.booleans(),
        datetime: times,
        datetime | None: st.none() | times,
        int | None: st.none() | st.integers(),
        bool | None: st.none() | st.booleans(),
        str | None: st.none() | st.text(),
        tuple[str, ...]: st.lists(st.text(), max_size=3).map(tuple),
        tuple[str, ...] | None: st.none() | st.lists(st.text(), max_size=3).map(tuple),
    }
    if hint in by_type:
        return by_type[hint]
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return st.sampled_from(hint)
    if get_origin(hint) is Mapping or "Mapping" in str(get_origin(hint)):
        return st.dictionaries(st.text(), json_values, max_size=3)
    return json_values


@pytest.mark.parametrize("kind", sorted(EVENT_TYPES))
@given(data=st.data())
def test_every_event_survives_json(kind: str, data: st.DataObject) -> None:
    event_type = EVENT_TYPES[kind]
    hints = get_type_hints(event_type)
    fields = {field.name: data.draw(values_of(hints[field.name])) for field in dataclasses.fields(event_type)}
    event = event_type(**fields)
    text, kept = event_to_text(event)
    data, dropped = with_values(json.loads(text), kept)
    assert event_from_json(kind, data) == event
    assert canonical_json(json.loads(text)) == text
    assert data == event_to_json(event)
    assert not dropped
    assert text.isascii()
    without, dropped = with_values(json.loads(text), None)
    assert dropped == json.loads(text).get("kept", {}).keys() <= KEPT_BESIDE.get(kind, {}).keys()
    event_from_json(kind, without)


@pytest.mark.parametrize("kind", sorted(EVENT_TYPES))
def test_an_event_with_a_field_too_many_or_too_few_is_refused(kind: str) -> None:
    with pytest.raises(LedgerError, match="does not have the fields"):
        event_from_json(kind, {"colour": "red"})
    with pytest.raises(LedgerError, match="does not have the fields"):
        event_from_json(kind, {})


def test_a_kind_that_nobody_knows_is_refused() -> None:
    with pytest.raises(LedgerError, match=r"no event is called 'run\.exploded'"):
        event_from_json("run.exploded", {})


@pytest.mark.parametrize(
    ("field", "value"), [("state", "sleeping"), ("state", 1), ("exit_code", "0"), ("reason", None)]
)
def test_a_field_of_another_type_is_refused(field: str, value: Any) -> None:
    fields = {"state": "failed", "exit_code": 0, "reason": ""}
    event_from_json("run.finished", fields)
    with pytest.raises(LedgerError, match="does not have the fields"):
        event_from_json("run.finished", {**fields, field: value})


@given(times, times)
def test_times_survive_as_text_and_sort_as_text(one: datetime, other: datetime) -> None:
    assert text_to_time(time_to_text(one)) == one
    assert (time_to_text(one) < time_to_text(other)) == (one < other)


@given(st.text(min_size=1), st.text())
def test_the_range_of_a_prefix_holds_exactly_what_starts_with_it(prefix: str, other: str) -> None:
    end = after_prefix(prefix)
    for text in (prefix, prefix + other, other):
        assert (prefix <= text and (end is None or text < end)) == text.startswith(prefix)


def test_a_prefix_of_the_last_character_has_no_end_and_surrogates_are_left_out() -> None:
    assert after_prefix("\U0010ffff") is None
    assert after_prefix("a\U0010ffff") == "b"
    assert after_prefix("\ud7ff") == "\ue000"
