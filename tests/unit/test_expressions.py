"""`${{ }}`: finding, checking and evaluating, with secrets kept out."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import InvalidExpression
from orchestrator.secret import Secret
from orchestrator.workflow.expressions import evaluate, holds, parse_template, references

CONTEXT = {
    "inputs": {"n": 5, "name": "Ada", "key": Secret("hunter2-canary")},
    "steps": {"read": {"state": "succeeded", "output": {"rows": [{"id": 1}, {"id": 2}]}}},
    "run": {"id": "run_1"},
    "endpoints": {"api": "http://x"},
    "context": {},
}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("plain", "plain"),
        ("${{ inputs.n }}", 5),
        ("${{ inputs.n + 1 }}", 6),
        ("n=${{ inputs.n }}!", "n=5!"),
        ("${{ steps.read.output.rows.map(r, {'x': r.id}) }}", [{"x": 1}, {"x": 2}]),
        ("${{ size(steps.read.output.rows) }} rows", "2 rows"),
        ("${{ '}}' }}", "}}"),
        ("$${{ inputs.n }}", "${{ inputs.n }}"),
        ("${{ endpoints.api }}/v1", "http://x/v1"),
        ("${{ inputs.n > 3 }}", True),
        ("${{ {'a': {'b': inputs.n}} }}", {"a": {"b": 5}}),
    ],
)
def test_an_expression_keeps_its_type_alone_and_becomes_text_inside_text(text: str, value: object) -> None:
    assert evaluate(text, CONTEXT) == value


def test_maps_and_lists_are_walked() -> None:
    assert evaluate({"a": ["${{ inputs.n }}", 1]}, CONTEXT) == {"a": [5, 1]}


@pytest.mark.parametrize(
    "text", ["a ${{ steps.read.output.rows }}", "${{ inputs.ghost }}", "${{ 1 / 0 }}", "${{ b'x' }}"]
)
def test_what_cannot_be_evaluated_is_said_without_values(text: str) -> None:
    with pytest.raises(InvalidExpression) as caught:
        evaluate(text, CONTEXT)
    assert "hunter2" not in str(caught.value)


def test_a_secret_comes_out_whole_and_as_a_secret() -> None:
    assert evaluate("${{ inputs.key }}", CONTEXT) == Secret("hunter2-canary")


@pytest.mark.parametrize(
    "text", ["${{ inputs.key + 'x' }}", "x${{ inputs.key }}", "${{ [inputs.key] }}", "${{ inputs }}"]
)
def test_a_secret_never_passes_through_an_expression(text: str) -> None:
    try:
        assert "hunter2" not in json.dumps(evaluate(text, CONTEXT))
    except InvalidExpression as error:
        assert "hunter2" not in str(error)


def test_references_are_found_outside_of_strings_and_macros() -> None:
    cel = "steps.read.output.rows.map(r, r.id + inputs['n']) + [size('steps.other')]"
    assert {str(each) for each in references(cel)} == {"steps.read.output.rows", "inputs.n"}


def test_a_condition_is_true_or_false_and_nothing_else() -> None:
    assert holds("inputs.n == 5", CONTEXT)
    assert not holds("${{ inputs.n == 6 }}", CONTEXT)
    with pytest.raises(InvalidExpression):
        holds("inputs.n", CONTEXT)


@given(st.text(max_size=80))
def test_no_text_makes_the_template_fail_in_another_way(text: str) -> None:
    for candidate in (text, "${{" + text + "}}", "${{ inputs." + text):
        try:
            template = parse_template(candidate)
            for expression in template.expressions:
                references(expression.cel)
            evaluate(candidate, CONTEXT)
        except InvalidExpression:
            pass


@given(st.text(max_size=60).filter(lambda text: "{{" not in text))
def test_text_without_expressions_is_left_alone(text: str) -> None:
    assert evaluate(text, CONTEXT) == text
