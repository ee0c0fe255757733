"""Whatever an event holds: what it becomes in OCSF is valid by the schema of its class."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from typing import get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ocsf_schema import captions, problems
from test_ledger_codec import values_of

from orchestrator.evidence.export.lease_rows import LeaseRow
from orchestrator.evidence.export.ocsf import ocsf_event
from orchestrator.evidence.export.ocsf_classes import MEANINGS, OTHER, meaning
from orchestrator.ledger.reading.history import ChainEvent, RunHead
from orchestrator.ledger.storage.codec import EVENT_TYPES, event_to_text

BEGUN = datetime(2026, 6, 1, 12, tzinfo=UTC)


def test_only_events_that_there_are_become_any() -> None:
    assert MEANINGS.keys() <= EVENT_TYPES.keys()


@pytest.mark.parametrize("kind", sorted(MEANINGS))
@given(data=st.data())
def test_what_an_event_becomes_is_valid_by_the_schema(kind: str, data: st.DataObject) -> None:
    hints = get_type_hints(EVENT_TYPES[kind])
    names = [field.name for field in dataclasses.fields(EVENT_TYPES[kind])]
    text, kept = event_to_text(EVENT_TYPES[kind](**{name: data.draw(values_of(hints[name])) for name in names}))
    beside = json.loads(kept) if kept is not None and data.draw(st.booleans()) else {}
    dropped = frozenset(json.loads(text).get("kept", {}).keys() - beside.keys())
    event = ChainEvent("run_a", 7, BEGUN, kind, json.loads(text), "0" * 64, beside, dropped)
    words = [data.draw(st.text()) for _ in range(4)]
    run = RunHead("run_a", words[0], words[1], None, BEGUN, None, 9)
    row = LeaseRow("lease_a", "run_a", words[0], words[2], 1, words[1], words[3], "database", words[2], "issued", BEGUN)
    known = meaning(event)
    if known is None:
        assert (kind, event.data["roles"]) == ("orphans.swept", [])
        return
    of_lease = row if kind.startswith("lease.") and data.draw(st.booleans()) else None
    made = ocsf_event(run, event, known, of_lease, with_values=data.draw(st.booleans()))
    told = json.loads(json.dumps(made))
    assert problems(told) == []
    said = captions(told)
    if told["activity_id"] == OTHER:
        del said["activity_name"]
    assert {name: told[name] for name in said} == said
    assert told["type_uid"] == told["class_uid"] * 100 + told["activity_id"]
