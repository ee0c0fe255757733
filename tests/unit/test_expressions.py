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
        ("timestamp('0000-01-01T00:00:00Z')", "too small"),
        (f"timestamp({OUT}.text)", "`timestamp` does not take this value"),
        (f"duration({OUT}.text)", "`duration` does not take this value"),
        (f"int({OUT}.text)", "`int` does not take this value"),
        (f"{OUT}.text.matches('(')", "`matches` does not take this value"),
        (f"{OUT}.text.matches('a{{1000}}{{1000}}{{1000}}')", "`matches` does not take this value"),
        ("nosuch(1)", "no function or variable `nosuch`"),
        ("'a'.nosuch()", "no function or variable `nosuch`"),
        (f"size({OUT}.n)", "no function `size`"),
        ("Foo{}", "no function or variable `Foo`"),
        ("0.0 / 0.0", "nan"),
        ("1.0e308 * 10.0", "inf"),
        ("[1.0 / 0.0]", "inf"),
        ("b'x'", "bytes"),
        ("[b'x']", "bytes"),
        ("type(1)", "type"),
        ("string(b'\\xff')", "not text"),
        ("{'a': 1, 'a': 2}", "a key twice"),
        ("{1.5: 2}", "do not go together"),
        ("!inputs.n", "do not go together"),
        ("inputs.n ? 1 : 2", "do not go together"),
        ("inputs.n.map(x, x)", "do not go together"),
        ("uint(-inputs.n)", "too large"),
        ("bool(inputs.name)", "`bool` does not take this value"),
        ("1" + " + 1" * 40, "nested too deeply"),
        ("inputs.n +", "is not a CEL expression"),
    ],
)
def test_whatever_the_engine_raises_is_a_failure_of_the_expression(cel: str, why: str) -> None:
    with pytest.raises(InvalidExpression) as caught:
        evaluate({"parameters": {"id": "${{ " + cel + " }}"}}, ROWS, at="with")
    assert why in caught.value.message
    assert caught.value.message.startswith(f"`with.parameters.id`: `{cel}`")
    with pytest.raises(InvalidExpression):
        holds(cel, ROWS)


@pytest.mark.parametrize(
    ("cel", "value"),
    [
        ("has(steps.read.output.rows)", True),
        ("has(steps.read.output.other)", False),
        ("has(inputs.other)", False),
        ("null", None),
        ("[null, {'a': null}]", [None, {"a": None}]),
        ("steps.read.output.rows[1].id", 2),
        ("steps['read'].output['rows'][0]['id']", 1),
        ("timestamp('2026-02-03T04:05:06Z')", "2026-02-03T04:05:06+00:00"),
        ("timestamp('2026-02-03T04:05:06Z') + duration('1h')", "2026-02-03T05:05:06+00:00"),
        ("duration('90m')", 5400.0),
        ("size('Zoë 日本')", 6),
        ("inputs.n / 2", 2),
        ("double(inputs.n) / 2.0", 2.5),
        ("string(inputs.n) + 'x'", "5x"),
        ("'a' in ['a', 'b'] ? 'yes' : 'no'", "yes"),
        ("{1: inputs.n}", {"1": 5}),
        ("[1, 2.5, true, 'x']", [1, 2.5, True, "x"]),
        ("inputs.name.matches('^A.a$') && inputs.name.startsWith('A')", True),
        ("steps.read.output.rows.filter(r, r.id > 1).map(r, r.id)", [2]),
        ("steps.read.output.rows.exists(r, r.id == 2)", True),
        ("r'\\d' + inputs.name + '}}'", "\\dAda}}"),
        ("inputs.name // of it ''' '\n + ' Lovelace'", "Ada Lovelace"),
        ("type(inputs.n) == int", True),
        ("'$' + run.id", "$run_1"),
    ],
)
def test_what_the_language_gives(cel: str, value: object) -> None:
    given = evaluate("${{ " + cel + " }}", CONTEXT)
    assert given == value
    assert type(given) is type(value)


@pytest.mark.parametrize(
    ("cel", "names"),
    [
        ("r'\\' + steps.read.output.a + '\\'", {"steps.read.output.a"}),
        ("'''a''' + steps.read.state // '''", {"steps.read.state"}),
        ("1 // ''' \n + steps.read.output.n // '''", {"steps.read.output.n"}),
        ('"\\"" + inputs.name + "\\""', {"inputs.name"}),
        (r"inputs['n\x61me']", {"inputs"}),
        ("type(run.id) == string && inputs.n in [1]", {"run.id", "inputs.n"}),
        ("has(inputs.n) ? context.a.startsWith(endpoints.api) : true", {"inputs.n", "context.a", "endpoints.api"}),
    ],
)
def test_nothing_hides_what_an_expression_refers_to(cel: str, names: set[str]) -> None:
    assert {str(each) for each in references(cel)} == names


@pytest.mark.parametrize("cel", ["[1].map(steps, steps)", "1 + [2].filter(inputs, true).size() + inputs.n"])
def test_a_loop_does_not_take_the_name_of_what_everybody_refers_to(cel: str) -> None:
    with pytest.raises(InvalidExpression, match="calls its variable"):
        references(cel)


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


@pytest.mark.parametrize("cel", ["[" + "1," * 500 + "1]", "inputs.n" + " || a" * 500, "!" * 1_001])
def test_an_expression_has_a_number_of_tokens(cel: str) -> None:
    with pytest.raises(InvalidExpression, match="words and signs; the limit is 1000"):
        parse_template("${{ " + cel + " }}")


@pytest.mark.parametrize("unit", ["'\\", '"\\', ";", "' ", "{"])
def test_an_expression_without_end_is_not_looked_through_to_the_end(unit: str) -> None:
    """Each quote that nothing closes was once looked for through all of the rest: hours, for a file of 1 MiB."""
    with pytest.raises(InvalidExpression, match="not closed after"):
        parse_template("${{ " + unit * 400_000)


@pytest.mark.parametrize(
    "cel", ["1 // don't", "1 // \" and {'a': 2}", "{'a': \"}}\"}", "'\\'}}' + \"'\"", "1 // it's\n + size('}}')"]
)
def test_what_looks_like_a_quote_ends_no_expression(cel: str) -> None:
    (found,) = parse_template("${{ " + cel + " }}").parts
    assert getattr(found, "cel", found) == cel
