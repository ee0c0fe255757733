"""What a `dynamic` grant sends: what may be declared, what is bound, what policies see, what Vault's policy allows."""

from __future__ import annotations

import json
from typing import Any

import pytest

from orchestrator.actions.catalog import catalog
from orchestrator.errors import InvalidExpression, UsageError
from orchestrator.grants.scope import Scope, scope_from_json
from orchestrator.planning.requests import bind, is_bound, scopes_of
from orchestrator.provision.vault.parameters import parameters_rule
from orchestrator.provision.vault.step_policies import step_policy
from orchestrator.workflow.loader import load_text
from orchestrator.workflow.problems import InvalidWorkflow


def scopes(parameters: Any, more: str = "") -> tuple[Scope, ...]:
    text = f"""\
version: 1
name: w
agent: a
inputs: {{ host: {{ type: string }}, n: {{ type: integer, default: 3 }}, key: {{ type: string, secret: true }} }}
steps:
  one:
    action: exec
    grants:
      mq: {{ kind: dynamic, path: mq/issue/x, parameters: {json.dumps(parameters)} }}
{more}
    with: {{ command: [/bin/true], credentials: {{ files: {{ MQ: mq }} }} }}
"""
    return scopes_of(load_text(text, filename="w.yaml", actions=catalog).workflow, "one")


def messages(parameters: Any) -> str:
    with pytest.raises(InvalidWorkflow) as caught:
        scopes(parameters)
    return "\n".join(f"{each.line}:{each.column} {each.message}" for each in caught.value.problems)


EVERY_TYPE = {"text": "a", "whole": 5, "number": 1.5, "truth": True, "texts": ["a", "b"]}


def test_every_type_keeps_its_type_and_is_on_record_and_seen_by_policies() -> None:
    (scope,) = scopes(EVERY_TYPE)
    assert scope.parameters == EVERY_TYPE
    recorded = json.loads(json.dumps(scope.as_json()))
    assert recorded["parameters"] == EVERY_TYPE
    assert [type(value) for value in recorded["parameters"].values()] == [str, int, float, bool, list]
    assert scope_from_json(recorded).parameters == EVERY_TYPE
    assert 'with text "a", whole 5, number 1.5, truth true, texts ["a", "b"]' in scope.describe()


def test_expressions_are_bound_when_it_is_issued() -> None:
    declared = scopes({"host": "${{ inputs.host }}.example", "n": "${{ inputs.n }}", "of": ["${{ inputs.host }}"]})
    assert is_bound(declared)
    (bound,) = bind(declared, {"inputs": {"host": "a", "n": 3}})
    assert bound.parameters == {"host": "a.example", "n": 3, "of": ["a"]}


@pytest.mark.parametrize("value", [None, {"a": 1}, [], [1], "a\0b", "x" * 5000, float("inf")])
def test_what_cannot_be_sent_is_refused_when_it_is_bound(value: Any) -> None:
    with pytest.raises(InvalidExpression, match="parameters"):
        bind(scopes({"host": "${{ inputs.host }}"}), {"inputs": {"host": value}})


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "at least 1"),
        ({"a b": 1}, "cannot be a name"),
        ({"a": None}, "it is not a text, a number"),
        ({"a": {"b": 1}}, "it is not a text, a number"),
        ({"a": []}, "it is not a text, a number"),
        ({"a": 1, "A": 2}, "upper and lower case"),
        ({"a": "${{ inputs.missing }}"}, "there is no input `missing`"),
        ({"a": "${{ inputs.key }}"}, "secret input `key`"),
        ({"a": "${{ inputs.host"}, "not closed"),
    ],
)
def test_what_is_wrong_is_told_at_its_place(parameters: Any, message: str) -> None:
    found = messages(parameters)
    assert message in found
    assert "9:" in found


def test_without_parameters_a_path_is_read_and_with_some_it_is_only_written_to() -> None:
    reading, writing = (
        Scope("a", "dynamic", "mq/creds/x", 60),
        Scope("b", "dynamic", "mq/issue/x", 60, parameters={"a": 1}),
    )
    policy = step_policy([reading, writing])
    assert 'path "mq/creds/x" {\n  capabilities = ["read"]' in policy
    assert 'path "mq/issue/x" {\n  capabilities = ["update"]\n  required_parameters = ["a"]' in policy


def test_constants_are_pinned_where_vault_can_compare_them() -> None:
    rule = parameters_rule(
        "mq/issue/x",
        {
            **EVERY_TYPE,
            "bound": "a-${{ inputs.a }}",
            "list": ["${{ inputs.a }}"],
            "glob": "a*",
            "hcl": "${a",
            "in": "a*b",
        },
    )
    lines = dict(line.strip().split(" = ", 1) for line in rule.splitlines() if line.startswith("    "))
    assert {json.loads(name): value for name, value in lines.items()} == {
        "text": '["a"]',
        "truth": "[true]",
        "texts": '[["a", "b"]]',
        "in": '["a*b"]',
        **dict.fromkeys(("whole", "number", "bound", "list", "glob", "hcl"), "[]"),
    }


def test_one_path_with_two_sets_of_parameters_is_refused_since_vault_would_mix_them() -> None:
    scopes = [Scope(name, "dynamic", "mq/issue/x", 60, parameters={"a": name}) for name in ("x", "y")]
    with pytest.raises(UsageError, match="with other parameters"):
        step_policy(scopes)
