"""Recorded decisions looked at afterwards: asked again, explained by the smallest changes, exported with masks."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from orchestrator.errors import UsageError
from orchestrator.policy.engines.rego.engine import PolicySource, RegoEngine
from orchestrator.policy.review.changes import REMOVED, Edit, smallest_changes, words_of
from orchestrator.policy.review.decision_log import log_event, masked
from orchestrator.policy.review.recorded import RecordedDecision
from orchestrator.policy.review.replay import Change, counted, grouped, replay
from orchestrator.policy.types import Question

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
DOCUMENT: dict[str, Any] = {
    "version": 1,
    "workflow": {"name": "w", "digest": "sha256:0"},
    "run": {"id": "r1", "trigger": "manual", "reason": "", "inputs": {"customer": 7}},
    "context": {"task": "crm"},
    "step": {"id": "read", "attempt": 1, "timeout": 60},
    "agent": "alice",
    "action": {"name": "postgres.query", "verbs": ["select"]},
    "grants": [
        {
            "name": "db",
            "kind": "database",
            "resource": "database/creds/x",
            "ttl": 120,
            "privileges": [{"verb": "select", "object": "public.t", "columns": ["a", "b", "c"]}],
        }
    ],
    "time": "2026-06-01T12:00:00+00:00",
    "supported_obligations": ["max_ttl"],
}


def engine(rules: str) -> RegoEngine:
    return RegoEngine.from_sources([PolicySource("p.rego", f"package orchestrator\nimport rego.v1\n{rules}")])


ALLOW = engine('decision := {"allow": true, "reasons": ["fine"]}')


def recorded(**changes: Any) -> RecordedDecision:
    made = RecordedDecision(
        run="r1",
        workflow="w",
        step="read",
        attempt=1,
        time=NOON,
        question=Question.DECISION,
        input=DOCUMENT,
        input_digest="sha256:1",
        allow=True,
        reasons=("fine",),
        engine="rego",
        revision="sha256:2",
        answer={"allow": True, "reasons": ["fine"]},
    )
    return replace(made, **changes)


class TestReplay:
    @pytest.mark.parametrize(
        ("rules", "before", "change"),
        [
            ('decision := {"allow": true}', {}, Change.NONE),
            ('decision := {"allow": true, "reasons": ["otherwise said"]}', {}, Change.NONE),
            ('decision := {"allow": false, "reasons": ["no"]}', {}, Change.DENIED),
            ('decision := {"allow": true} if input.agent == "bob"', {}, Change.DENIED),
            ("decision := 1 / input.zero", {"input": {**DOCUMENT, "zero": 0}}, Change.DENIED),
            ('decision := {"allow": true, "obligations": {"max_ttl": 60}}', {}, Change.OBLIGATIONS),
            (
                'decision := {"allow": true, "obligations": {"max_ttl": 60}}',
                {"obligations": {"max_ttl": 60}},
                Change.NONE,
            ),
            ('decision := {"allow": true}', {"allow": False, "reasons": ("no",)}, Change.ALLOWED),
            ('decision := {"allow": false, "reasons": ["no"]}', {"allow": False, "reasons": ("no",)}, Change.NONE),
            ('decision := {"allow": false, "reasons": ["yes"]}', {"allow": False, "reasons": ("no",)}, Change.REASONS),
            ('decision := {"allow": true}', {"input": {}}, Change.UNKNOWN),
            (
                'decision := {"allow": true}\nadmit := {"allow": false, "reasons": ["who?"]}',
                {},
                Change.DENIED,
            ),
            (
                'decision := {"allow": true}\nadmit := {"allow": true}',
                {"allow": False, "question": Question.ADMIT, "reasons": ("who?",)},
                Change.ADMITTED,
            ),
            (
                'decision := {"allow": true}\nadmit := {"allow": false, "reasons": ["who?"]}',
                {"allow": False, "question": Question.ADMIT, "reasons": ("who?",)},
                Change.NONE,
            ),
        ],
    )
    def test_each_change_has_its_name(self, rules: str, before: dict[str, Any], change: Change) -> None:
        (found,) = replay([recorded(**before)], engine(rules))
        assert found.change is change

    def test_before_anything_is_evaluated_the_policy_is_not_shown_what_was(self) -> None:
        rules = """
decision := {"allow": true}
admit := {"allow": true} if { input.context == {}; input.action == {"name": "postgres.query"} }
"""
        (found,) = replay([recorded()], engine(rules))
        assert found.change is Change.NONE

    def test_the_same_changes_are_told_together_the_most_frequent_first(self) -> None:
        other = {**DOCUMENT, "agent": "bob"}
        decisions = [recorded(run=f"r{number}") for number in range(3)] + [recorded(run="r9", input=other)]
        rules = 'decision := {"allow": false, "reasons": [sprintf("not %s", [input.agent])]}'
        counts, changed = counted(replay(decisions, engine(rules)))
        assert counts[Change.DENIED] == 4
        groups = grouped(changed)
        assert [(group.agent, group.after, len(group.runs)) for group in groups] == [
            ("alice", ("not alice",), 3),
            ("bob", ("not bob",), 1),
        ]
        assert groups[0].runs == ["r0/read/1", "r1/read/1", "r2/read/1"]


RULES = """
default decision := {"allow": false, "reasons": ["nothing allows it"]}
decision := {"allow": true} if count(denials) == 0
decision := {"allow": false, "reasons": sort(denials)} if count(denials) > 0
denials contains sprintf("column %s", [column]) if {
    some grant in input.grants
    some privilege in grant.privileges
    some column in privilege.columns
    not column in {"a", "b"}
}
denials contains "it lives too long" if { some grant in input.grants; grant.ttl > 90 }
denials contains "a stranger" if not input.agent in {"alice", "carol"}
"""


def changes(rules: str = RULES, **document: Any) -> list[str]:
    made = engine(rules)
    words = words_of([source.text for source in made.sources], {})
    found = smallest_changes({**DOCUMENT, **document}, lambda asked: made.ask(Question.DECISION, asked), words, most=20)
    return [" + ".join(map(str, change)) for change in found]


def grants(ttl: int, *columns: str) -> Any:
    return [{**DOCUMENT["grants"][0], "ttl": ttl, "privileges": [{"verb": "select", "columns": list(columns)}]}]


class TestSmallestChanges:
    def test_asking_for_less_comes_first(self) -> None:
        found = changes(grants=grants(60, "a", "x"))
        assert found[0] == "without grants[0] (`db`)"
        assert "without grants[0].privileges[0].columns[1] (`x`)" in found
        assert not any("instead of `x`" in change for change in found), "one change of each place is enough"

    def test_a_value_that_the_policy_mentions_takes_the_place_of_one(self) -> None:
        assert "grants[0].ttl: `90` instead of `120`" in changes(grants=grants(120, "a"))
        assert changes(grants=grants(60, "a"), agent="mallory") == ["agent: `alice` instead of `mallory`"]

    def test_two_that_are_needed_are_told_together(self) -> None:
        found = changes(grants=grants(120, "a", "x"), agent="mallory")
        assert "agent: `alice` instead of `mallory`" in found[0]
        assert all(" + " in change for change in found)

    def test_several_elements_of_one_list_are_left_out_together(self) -> None:
        rules = """
default decision := {"allow": false, "reasons": ["nothing was asked for"]}
columns := input.grants[0].privileges[0].columns
decision := {"allow": true} if { count(columns) > 0; count(denials) == 0 }
decision := {"allow": false, "reasons": sort(denials)} if count(denials) > 0
denials contains column if { some column in columns; startswith(column, "x") }
"""
        columns = [f"c{number}" for number in range(12)]
        columns[2], columns[10] = "x2", "x10"
        found = changes(rules, grants=grants(60, *columns))
        place = "without grants[0].privileges[0].columns"
        assert f"{place}[2] (`x2`) + {place}[10] (`x10`)" in found

    def test_of_what_was_allowed_it_says_what_that_hangs_on(self) -> None:
        found = changes(grants=grants(60, "a", "b"))
        assert "agent: `alice?` instead of `alice`" in found
        assert any(change.startswith("grants[0].ttl") for change in found)
        assert not any(change.startswith(("run.id", "time", "version", "workflow.digest")) for change in found)

    def test_none_is_found_where_nothing_helps(self) -> None:
        assert changes('decision := {"allow": false, "reasons": ["never"]}') == []

    def test_a_change_can_be_applied_by_a_script(self) -> None:
        edit = Edit(("grants", 0, "a/b"), 1, 2)
        assert edit.as_json() == {"op": "replace", "path": "/grants/0/a~1b", "before": 1, "value": 2}
        assert Edit(("grants", 0), "x", REMOVED).as_json() == {"op": "remove", "path": "/grants/0", "before": "x"}

    def test_words_are_those_of_rules_and_data(self) -> None:
        found = words_of(
            ['p := "x" if input.ttl < 900 # "y"\nq := sprintf("no %s", [1])'], {"agents": {"bob": ["z", 7, True]}}
        )
        assert found == ["agents", "bob", "z", 7, "x", 900, "y", 1]


class TestDecisionLog:
    def test_an_event_has_the_fields_of_opa(self) -> None:
        event = log_event(recorded(decision_id="d-1"))
        assert {key: event[key] for key in ("decision_id", "bundles", "path", "requested_by", "timestamp")} == {
            "decision_id": "d-1",
            "bundles": {"policies": {"revision": "sha256:2"}},
            "path": "orchestrator/decision",
            "requested_by": "r1/read/1",
            "timestamp": "2026-06-01T12:00:00.000000Z",
        }
        assert event["input"] == DOCUMENT
        assert event["result"] == {"allow": True, "reasons": ["fine"]}
        assert event["labels"]["engine"] == "rego"
        json.dumps(event)

    def test_without_an_answer_there_is_no_result_and_the_id_is_ours(self) -> None:
        event = log_event(recorded(answer=None, allow=False, question=Question.ADMIT))
        assert "result" not in event
        assert event["decision_id"] == "r1/read/1/admit"
        assert event["custom"]["allow"] is False

    def test_masks_erase_and_replace_as_in_opa(self) -> None:
        event = masked(
            log_event(recorded()),
            [
                "/input/run/inputs",
                {"op": "upsert", "path": "/input/agent", "value": "***"},
                {"op": "upsert", "path": "/input/context/added", "value": 1},
                {"op": "remove", "path": "/input/grants/0/privileges/0/columns/1"},
                "/result/reasons",
                "/input/not/there",
                "/input/grants/7",
            ],
        )
        assert "inputs" not in event["input"]["run"]
        assert event["input"]["agent"] == "***"
        assert event["input"]["context"] == {"task": "crm", "added": 1}
        assert event["input"]["grants"][0]["privileges"][0]["columns"] == ["a", "c"]
        assert event["result"] == {"allow": True}
        assert event["erased"] == ["/input/grants/0/privileges/0/columns/1", "/input/run/inputs", "/result/reasons"]
        assert event["masked"] == ["/input/agent", "/input/context/added"]

    def test_the_record_itself_is_left_as_it_is(self) -> None:
        before = json.dumps(DOCUMENT)
        masked(log_event(recorded()), ["/input/run/inputs", "/input/grants"])
        assert json.dumps(DOCUMENT) == before

    @pytest.mark.parametrize(
        "mask",
        ["input/run", "/labels", "/custom/run", "", 5, None, {"op": "copy", "path": "/input/a"}, {"op": "remove"}],
    )
    def test_a_mask_that_cannot_be_obeyed_keeps_the_event_back(self, mask: object) -> None:
        with pytest.raises(UsageError, match="mask"):
            masked(log_event(recorded()), [mask])
