"""Values are given out as `history prove` gives them: on demand, as far as they are kept; their digests always."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from exported import BEGUN, GIVEN, PERSON, Export, Ticking, exporter, lines, stored, with_values
from ocsf_schema import problems

from orchestrator.evidence.retention import Retention, prune
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.storage.chain import Head, StoredEvent, first_break
from orchestrator.ledger.storage.codec import canonical_json
from orchestrator.ledger.storage.codec import with_values as opened

BESIDE = {"run.started": {"inputs"}, "decision": {"input", "input_digest"}, "step.finished": {"outputs"}}


@pytest.fixture
def export(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Export:
    return exporter(monkeypatch, capsys)


@pytest.fixture
async def url(tmp_path: Path) -> str:
    return await with_values(f"sqlite:///{tmp_path / 'ledger.db'}")


async def pruned(url: str, **days: int) -> None:
    with open_ledger(url, clock=Ticking()) as ledger:
        kept_for = Retention(**{name: number * 86400 for name, number in days.items()})
        assert (await prune(ledger, ledger, kept_for, BEGUN + timedelta(days=10))).runs == 1


def left_out(found: Iterable[dict[str, Any]]) -> dict[tuple[str, str], set[str]]:
    return {(each["run_id"], each["kind"]): set(each["left_out"]) for each in found if "left_out" in each}


def dropped(found: Iterable[dict[str, Any]]) -> dict[tuple[str, str], set[str]]:
    return {(each["run_id"], each["kind"]): set(each["dropped"]) for each in found if "dropped" in each}


def of(*runs: str, beside: dict[str, set[str]] = BESIDE) -> dict[tuple[str, str], set[str]]:
    return {(run, kind): names for run in runs for kind, names in beside.items()}


def assert_intact(found: list[dict[str, Any]]) -> None:
    """The chains of a run can be computed again from the lines."""
    for run in {each["run_id"] for each in found}:
        events = [
            StoredEvent(
                run,
                each["seq"],
                each["time"],
                each["kind"],
                canonical_json(each["data"]),
                each["digest"],
                canonical_json(each["kept"]) if "kept" in each else None,
            )
            for each in found
            if each["run_id"] == run
        ]
        assert first_break(run, events, Head(events[-1].seq, events[-1].digest)) is None


def test_without_being_asked_for_there_are_digests_alone(url: str, export: Export) -> None:
    for form in ("jsonl", "ocsf", "csv"):
        text = export(url, "--format", form)
        assert PERSON not in text
        assert GIVEN not in text
        assert "5" * 64 not in text
    found, _ = lines(export(url))
    assert left_out(found) == of("run_a", "run_b")
    assert dropped(found) == {}
    assert not any("kept" in each for each in found)
    assert_intact(found)


def test_on_demand_there_are_the_values_beside_their_digests(url: str, export: Export) -> None:
    found, _ = lines(export(url, "--with-values"))
    assert left_out(found) == dropped(found) == {}
    assert_intact(found)
    values = {}
    for each in found:
        if "kept" in each:
            data, gone = opened(each["data"], canonical_json(each["kept"]))
            assert not gone
            values[each["run_id"], each["kind"]] = {name: data[name] for name in each["kept"]}
    for run in ("run_a", "run_b"):
        assert values[run, "run.started"] == {"inputs": {"who": PERSON}}
        assert values[run, "step.finished"] == {"outputs": {"rows": [GIVEN]}}
        assert values[run, "decision"] == {"input": {"inputs": {"who": PERSON}}, "input_digest": "5" * 64}
    told, _ = lines(export(url, "--with-values", "--format", "ocsf"))
    (started,) = [each for each in told if each["metadata"]["uid"] == "run_a/1"]
    assert started["unmapped"]["kept"]["inputs"]["value"] == {"who": PERSON}


async def test_what_was_dropped_is_said_to_be_and_not_made_up(url: str, export: Export) -> None:
    await pruned(url, outputs=1)
    found, _ = lines(export(url, "--with-values"))
    outputs = {"step.finished": {"outputs"}}
    assert dropped(found) == dropped(lines(export(url))[0]) == of("run_a", beside=outputs)
    step = next(each for each in found if each["kind"] == "step.finished")
    assert "kept" not in step
    assert "outputs" not in step["data"]
    assert len(step["data"]["kept"]["outputs"]) == 64
    inputs = {kind: names for kind, names in BESIDE.items() if kind != "step.finished"}
    assert left_out(lines(export(url))[0]) == of("run_a", beside=inputs) | of("run_b")
    assert_intact(found)
    await pruned(url, inputs=1)
    found, _ = lines(export(url, "--with-values", "--run", "run_a"))
    assert dropped(found) == of("run_a")
    assert PERSON not in json.dumps(found)
    assert_intact(found)
    acts = [each["data"] for each in found if each["kind"] == "values.dropped"]
    assert acts == [
        {"values": ["outputs"], "reason": "retention: outputs 24h"},
        {"values": ["inputs"], "reason": "retention: inputs 24h"},
    ]


async def test_ocsf_has_the_dropping_and_copes_with_what_is_gone(url: str, export: Export) -> None:
    await pruned(url, outputs=1, inputs=1)
    for words in ([], ["--with-values"]):
        found, mark = lines(export(url, "--format", "ocsf", *words))
        assert mark["events"] == len(found) == 6
        assert [problems(each) for each in found] == [[]] * 6
        (act,) = [each for each in found if each["metadata"]["event_code"] == "values.dropped"]
        assert (act["type_name"], act["status"]) == ("Entity Management: Delete", "Success")
        assert act["entity"] == {"name": "inputs, outputs", "uid": "run_a", "type": "Values of a run", "type_id": 99}
        assert act["status_detail"] == "retention: inputs 24h, outputs 24h"
        assert act["actor"] == {"app_name": "credential-orchestrator"}
        (decision,) = [each for each in found if each["metadata"]["uid"] == "run_a/2"]
        assert decision["class_uid"] == 3003
        assert decision["unmapped"]["dropped"] == ["input", "input_digest"]


def by_hand(path: Path, *statements: tuple[str, Any]) -> None:
    with closing(sqlite3.connect(path)) as ledger:
        for (name,) in ledger.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            ledger.execute(f"DROP TRIGGER {name}")
        for statement, values in statements:
            assert ledger.execute(statement, values).rowcount == 1
        ledger.commit()


def test_values_in_the_events_of_an_older_ledger_are_left_out_the_same_way(
    url: str, export: Export, tmp_path: Path
) -> None:
    started = {"workflow": "w", "inputs": {"who": PERSON}, "call": {}, "agent": "a"}
    by_hand(
        tmp_path / "ledger.db",
        ("UPDATE event SET data = ?, kept = NULL WHERE run_id = 'run_a' AND seq = 1", [json.dumps(started)]),
    )
    for form in ("jsonl", "ocsf"):
        assert PERSON not in export(url, "--format", form, "--run", "run_a")
        assert PERSON in export(url, "--format", form, "--run", "run_a", "--with-values")
    (line, *_), _ = lines(export(url, "--run", "run_a"))
    assert line["left_out"] == ["inputs"]
    assert line["data"] == {"workflow": "w", "call": {}, "agent": "a"}
    (line, *_), _ = lines(export(url, "--run", "run_a", "--with-values"))
    assert line["data"] == started
    assert "left_out" not in line


@pytest.mark.parametrize("words", [[], ["--with-values"]])
def test_a_value_that_is_another_than_was_recorded_is_given_out_to_nobody(
    url: str, export: Export, tmp_path: Path, words: list[str]
) -> None:
    ((kept,),) = stored(tmp_path / "ledger.db", "kept", "event WHERE run_id = 'run_a' AND seq = 1")
    forged = kept.replace(PERSON, "Somebody")
    by_hand(tmp_path / "ledger.db", ("UPDATE event SET kept = ? WHERE run_id = 'run_a' AND seq = 1", [forged]))
    text = export(url, *words, code=5)
    assert "Somebody" not in text
    assert '"end": true' not in text
