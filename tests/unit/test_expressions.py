"""`${{ }}`: finding, checking and evaluating, with secrets kept out."""

from __future__ import annotations

import json
import subprocess
import sys

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


ROWS = {
    **CONTEXT,
    "steps": {"read": {"state": "succeeded", "output": {"rows": [], "n": 0, "text": "abc", "nul": None}}},
}
OUT = "steps.read.output"


@pytest.mark.parametrize(
    ("cel", "why"),
    [
        (f"{OUT}.rows[0].id", "does not have the element"),
        (f"{OUT}.rows[-1]", "does not have the element"),
        (f"{OUT}.rows[9223372036854775807]", "does not have the element"),
        (f"{OUT}.rows['first']", "do not go together"),
        (f"{OUT}.text[0]", "do not go together"),
        (f"{OUT}.nul.x", "do not go together"),
        (f"{OUT}.rows + 1", "do not go together"),
        (f"{OUT}.missing", "there is no `missing`"),
        ("{}[run.id]", "does not have the key that it asks for"),
        (f"100 / {OUT}.n", "divides by zero"),
        (f"100 % {OUT}.n", "divides by zero"),
        ("9223372036854775807 + inputs.n", "too large"),
        ("-9223372036854775807 - inputs.n", "too large"),
        ("9223372036854775807 * inputs.n", "too large"),
        ("int(1e300)", "too large"),
        ("timestamp('9999-12-31T23:59:59Z') + duration('1h')", "too large"),
        ("timestamp('0000-01-01T00:00:00Z')", "out of range"),
        (f"timestamp({OUT}.text)", "`timestamp` does not take this value"),
        (f"duration({OUT}.text)", "`duration` does not take this value"),
        (f"int({OUT}.text)", "`int` does not take this value"),
        (f"{OUT}.text.matches('(')", "`matches` does not take this value"),
        (f"{OUT}.text.matches('a{{1000}}{{1000}}{{1000}}')", "`matches` does not take this value"),
        ("nosuch(1)", "no function `nosuch`"),
        (f"size({OUT}.n)", "no function `size`"),
        ("Foo{a: 1}", "the engine failed"),
        ("0.0 / 0.0", "nan"),
        ("1.0e308 * 10.0", "inf"),
        ("[1.0 / 0.0]", "inf"),
        ("b'x'", "bytes"),
        ("optional.of(1)", "not JSON"),
    ],
)
def test_whatever_the_engine_raises_is_a_failure_of_the_expression(cel: str, why: str) -> None:
    with pytest.raises(InvalidExpression) as caught:
        evaluate({"parameters": {"id": "${{ " + cel + " }}"}}, ROWS, at="with")
    assert why in caught.value.message
    assert caught.value.message.startswith(f"`with.parameters.id`: `{cel}`")
    with pytest.raises(InvalidExpression):
        holds(cel, ROWS)


def test_no_value_is_part_of_the_message() -> None:
    secretive = {**CONTEXT, "run": {"id": "canary-value"}, "inputs": {"n": 778899}}
    for cel in (
        "{}[run.id]",
        "int(run.id)",
        "'a'.matches(run.id + '(')",
        "9223372036854775807 + inputs.n",
        "[1][inputs.n]",
    ):
        with pytest.raises(InvalidExpression) as caught:
            evaluate("${{ " + cel + " }}", secretive)
        assert "canary" not in str(caught.value)
        assert "778899" not in str(caught.value)


class PanicException(BaseException):
    """As the engine's native side raises where it gives up."""


PanicException.__module__ = "pyo3_runtime"


@pytest.mark.parametrize("raised", [PanicException("index 3 of 2"), MemoryError(), RecursionError(), StopIteration()])
def test_a_panic_of_the_engine_is_a_failure_of_the_expression(
    raised: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Program:
        def execute(self, context: object) -> object:
            raise raised

    monkeypatch.setattr("orchestrator.workflow.cel.compiled", lambda cel: Program())
    with pytest.raises(InvalidExpression, match="the engine failed"):
        evaluate("${{ 1 }}", CONTEXT)


def test_what_is_not_the_engines_is_not_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    class Program:
        def execute(self, context: object) -> object:
            raise KeyboardInterrupt

    monkeypatch.setattr("orchestrator.workflow.cel.compiled", lambda cel: Program())
    with pytest.raises(KeyboardInterrupt):
        evaluate("${{ 1 }}", CONTEXT)


DEEP = {
    "a chain of operators": lambda size: "+".join(["1"] * size),
    "a chain of members": lambda size: "inputs" + ".n" * size,
    "a chain of indexes": lambda size: "inputs" + "[0]" * size,
    "a chain of calls": lambda size: "'a'" + ".string()" * size,
    "a chain of macros": lambda size: "[1]" + ".map(x, x)" * size,
    "brackets": lambda size: "(" * size + "1" + ")" * size,
    "lists": lambda size: "[" * size + "]" * size,
    "maps": lambda size: "{'a':" * size + "1" + "}" * size,
    "functions": lambda size: "string(" * size + "1" + ")" * size,
    "conditions": lambda size: "true ? " * size + "1" + " : 1" * size,
    "negations": lambda size: "!" * size + "true",
    "text": lambda size: "'" + "a" * size + "'",
}


@pytest.mark.parametrize("shape", DEEP)
def test_an_expression_that_would_overflow_the_stack_is_refused_before_the_engine_sees_it(shape: str) -> None:
    with pytest.raises(InvalidExpression):
        parse_template("${{ " + DEEP[shape](20_000) + " }}")
    with pytest.raises(InvalidExpression):
        holds(DEEP[shape](20_000), CONTEXT)


CHILD = """
import sys, threading
from orchestrator.errors import InvalidExpression
from orchestrator.workflow.expressions import evaluate
def go():
    for cel in sys.stdin.read().splitlines():
        try:
            evaluate("${{ " + cel + " }}", {"inputs": {"n": 1}})
        except InvalidExpression:
            pass
    print("alive")
threading.stack_size(512 * 1024)
thread = threading.Thread(target=go)
thread.start()
thread.join()
"""


def test_the_largest_expressions_that_are_let_through_fit_on_a_small_stack() -> None:
    sizes = (10, 40, 48, 49, 50, 100, 120, 150, 200, 240, 300, 330, 400, 480, 499, 500)
    cases = [make(size) for make in DEEP.values() for size in sizes]
    cases += ["(" * 49 + make(20) + ")" * 49 for make in DEEP.values()]
    ran = subprocess.run(
        [sys.executable, "-c", CHILD], input="\n".join(cases), text=True, capture_output=True, check=False
    )
    assert (ran.returncode, ran.stdout.strip()) == (0, "alive"), ran.stderr[-500:]
