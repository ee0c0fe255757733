"""The hash chain is exactly what its description says, so that anybody can check it with other tools."""

from __future__ import annotations

import hashlib
import json

import pytest

from orchestrator.ledger.storage.chain import Head, StoredEvent, first_break, genesis, link


def test_the_genesis_is_the_hash_of_the_run_id_in_a_domain_of_its_own() -> None:
    digest = hashlib.sha256(b"credential-orchestrator:ledger:run:v1\0" + b"run_1").hexdigest()
    assert genesis("run_1") == Head(0, digest)


def test_a_digest_is_the_hash_of_the_one_before_and_the_canonical_event() -> None:
    data = {"b": [1, "\n"], "a": None}
    whole = {"run": 'r"1', "seq": 7, "time": "t", "kind": "k", "data": data}
    canonical = json.dumps(whole, sort_keys=True, separators=(",", ":"))
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    digest = link("ab" * 32, run_id='r"1', seq=7, time="t", kind="k", data=text)
    assert digest == hashlib.sha256(bytes.fromhex("ab" * 32) + canonical.encode()).hexdigest()


@pytest.mark.parametrize(
    ("data", "kind"), [('{"a":1}', 'x","kind":"y'), ('{"a":1},"kind":"x"', "y"), ('{"a":1', '}","kind":"x')]
)
def test_text_that_moves_from_one_field_into_another_changes_the_digest(data: str, kind: str) -> None:
    honest = link("ab" * 32, run_id="r", seq=1, time="t", kind="x", data='{"a":1,"kind":"y"}')
    assert link("ab" * 32, run_id="r", seq=1, time="t", kind=kind, data=data) != honest


def test_a_run_without_events_is_whole_only_if_its_head_says_so() -> None:
    assert first_break("r", [], genesis("r")) is None
    assert first_break("r", [], Head(2, "00" * 32)) == 1
    foreign = StoredEvent("r", 1, "t", "k", "{}", "00" * 32)
    assert first_break("r", [foreign], genesis("r")) == 1
