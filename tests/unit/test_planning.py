"""The plan: pure, offline, the same every time; and what lint says of a workflow."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.actions.catalog import action, catalog
from orchestrator.planning.graph import dependencies, execution_order
from orchestrator.planning.lint import lint
from orchestrator.planning.plan import build
from orchestrator.workflow.dependencies import find_cycle
from orchestrator.workflow.inputs import bind_inputs
from orchestrator.workflow.loader import load, load_text

SAMPLE = Path(__file__).parents[2] / "workflows" / "customer_feedback.yaml"
ENDPOINTS = {"translation": "https://translate.example"}


def test_dependencies_follow_from_references() -> None:
    workflow = load(SAMPLE, actions=catalog).workflow
    assert dependencies(workflow) == {
        "read": frozenset(),
        "translate": frozenset({"read"}),
        "notify": frozenset({"translate"}),
        "record": frozenset({"translate"}),
    }
    assert execution_order(dependencies(workflow))[0] == "read"


@given(st.integers(1, 50), st.sampled_from(["#support", "#general"]))
def test_identical_inputs_give_an_identical_plan(limit: int, channel: str) -> None:
    loaded = load(SAMPLE, actions=catalog)
    bound = bind_inputs(loaded.workflow, {"limit": limit, "channel": channel})
    plans = [build(loaded, bound, action=action, endpoints=ENDPOINTS) for _ in range(2)]
    assert plans[0] == plans[1]
    texts = [json.dumps([step.request.as_json() for step in plan.steps], sort_keys=True) for plan in plans]
    assert texts[0] == texts[1]


def test_a_plan_shows_what_is_known_and_says_what_is_not() -> None:
    loaded = load(SAMPLE, actions=catalog)
    plan = build(loaded, bind_inputs(loaded.workflow, {}), action=action, endpoints=ENDPOINTS)
    views = {step.request.step: step.request.action_view for step in plan.steps}
    assert views["read"] == {"verbs": ["select"]}
    assert views["notify"] == {"channel": "#support", "partial": True}
    assert views["record"]["verbs"] == ["insert"]
    assert all(step.request.time is None for step in plan.steps)


def linted(grants: str, more: str = "") -> list[str]:
    text = f"""
version: 1
name: w
agent: a
steps:
  one:
    action: http.request
    timeout: 30s
    grants: {{ {grants} }}
    with: {{ method: GET, url: "https://x.example"{more} }}
"""
    return [problem.message for problem in lint(load_text(text, filename="w.yaml", actions=catalog))]


def test_lint_finds_credentials_that_live_too_long_too_short_or_for_nothing() -> None:
    token = "kind: token, audience: x, scope: [y]"
    assert linted(f"api: {{ {token} }}", ", bearer: api") == []
    assert "does not use it" in linted(f"api: {{ {token} }}")[0]
    assert "far longer" in linted(f"api: {{ {token}, ttl: 2h }}", ", bearer: api")[0]
    assert "may end after 10s" in linted(f"api: {{ {token}, ttl: 10s }}", ", bearer: api")[0]
    unused = linted("api: { kind: secret, path: p, keys: [token, spare] }", ", bearer: api.token")
    assert unused == ["the step reads `spare` of the secret and does not use it"]


@pytest.mark.parametrize(
    ("one", "other", "found"),
    [
        ("audience: x", "audience: y", 1),
        ("audience: x", "audience: x", 0),
        ("audience: x", "audience: y, key: orders", 0),
        ("audience: x", "audience: y, mount: theirs", 0),
        ("audience: x, key: orders", "audience: y, key: orders", 1),
        ("audience: x", "audience: y, profile: workflow", 0),
        ("audience: x, profile: identity", "audience: y", 0),
    ],
)
def test_lint_finds_a_key_that_signs_for_two_audiences(one: str, other: str, found: int) -> None:
    grants = ", ".join(f"{name}: {{ kind: token, scope: [a], {more} }}" for name, more in (("p", one), ("q", other)))
    problems = linted(grants, ", bearer: p, headers: { x-more: q }")
    assert sum("signs for `x`, too" in problem for problem in problems) == found
    assert len([problem for problem in problems if "signs" in problem]) == found


@given(st.dictionaries(st.sampled_from("abcdef"), st.frozensets(st.sampled_from("abcdef"))))
def test_a_cycle_that_is_found_is_one_and_none_is_missed(graph: dict[str, frozenset[str]]) -> None:
    graph = {node: following & graph.keys() for node, following in graph.items()}
    cycle = find_cycle(graph)
    if cycle:
        assert cycle[0] == cycle[-1]
        assert all(after in graph[before] for before, after in itertools.pairwise(cycle))
        return
    left = dict(graph)
    while left:
        ready = [node for node, following in left.items() if not following & left.keys()]
        assert ready
        for node in ready:
            del left[node]
