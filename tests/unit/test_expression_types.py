"""`validate` holds expressions against the declared types of inputs and what is known of outputs."""

from __future__ import annotations

import pytest

from orchestrator.actions.catalog import catalog
from orchestrator.planning.lint import lint
from orchestrator.workflow.loader import load_text
from orchestrator.workflow.problems import InvalidWorkflow

TEXT = """\
version: 1
name: w
agent: a
inputs:
  limit: {{ type: integer, default: 5 }}
  name: {{ type: string, default: x }}
  flag: {{ type: boolean, default: true }}
  ratio: {{ type: number, default: 2 }}
  ids: {{ type: array, default: [] }}
  more: {{ type: object, default: {{}} }}
context:
  task: {context}
steps:
  read:
    action: postgres.query
    grants: {{ db: {{ kind: database, connection: c, role: r }} }}
    with: {{ sql: SELECT 1 }}
    outputs: [rows, row_count, columns]
  call:
    action: http.request
    with: {{ url: "http://x" }}
    outputs: [status, body]
  use:
    action: exec
    if: "{condition}"
    with:
      command:
        - a
        - {value}
"""


def problems(*, value: str = "a", condition: str = "true", context: str = "a") -> list[str]:
    try:
        load_text(TEXT.format(value=value, condition=condition, context=context), filename="w.yaml", actions=catalog)
    except InvalidWorkflow as error:
        return [f"{each.line}:{each.column}: {each.message}" for each in error.problems]
    return []


@pytest.mark.parametrize(
    ("cel", "said"),
    [
        ("inputs.limit + 'x'", "`+` does not go with (int, string), at its column 14"),
        ("inputs.name - 1", "`-` does not go with (string, int)"),
        ("inputs.flag * 2", "`*` does not go with (bool, int)"),
        ("inputs.ratio + 'x'", "`+` does not go with"),
        ("inputs.name[0]", "`[]` does not go with (string, int)"),
        ("inputs.limit.startsWith('a')", "`startsWith` does not go with"),
        ("lowercase(inputs.name)", "there is no function or variable `lowercase`"),
        ("inputs.name.lowercase()", "there is no function or variable `lowercase`"),
        ("steps.read.output.row_count + 'x'", "`+` does not go with (int, string)"),
        ("steps.read.output.rows + 1", "`+` does not go with"),
        ("steps.read.output.rows.map(r, r + 1)", "`+` does not go with"),
        ("steps.call.output.status + ' OK'", "`+` does not go with (int, string)"),
        ("steps.read.state == 1", "`==` does not go with (string, int)"),
        ("run.id + 1", "`+` does not go with (string, int)"),
        ("endpoints.api * 2", "`*` does not go with (string, int)"),
        ("has(inputs.name) ? inputs.limit + 'x' : 'y'", "`+` does not go with (int, string)"),
        ("inputs.flag ? 1 : 'a'", "`?:` does not go with"),
        ("inputs.limit +", "is not a CEL expression"),
        ("1 ++ 2", "is not a CEL expression"),
        ("1" + " + 1" * 33, "nested too deeply"),
    ],
)
def test_what_types_do_not_allow_is_found_before_a_run(cel: str, said: str) -> None:
    (problem,) = problems(value='"${{ ' + cel + ' }}"')
    assert problem.startswith("29:11: ")
    assert f"`{cel}`"[:60] in problem
    assert said in problem


@pytest.mark.parametrize(
    "cel",
    [
        "string(inputs.limit) + 'x'",
        "inputs.ratio * 2",
        "inputs.ratio * 2.5",
        "double(inputs.ratio) / 2.0",
        "has(inputs.limit) ? inputs.name : 'none'",
        "has(inputs.name) && has(steps.read.output.row_count) && has(inputs.more.x)",
        "inputs.more.anything + 1",
        "inputs.ids[0] + 'x'",
        "inputs['limit'] + 1",
        "steps.read.output.rows[0].any.thing",
        "steps.read.output.rows.map(r, {'id': r.id, 'n': size(r.name)})[0].id",
        "steps.read.output.columns[0] + ''",
        "steps.call.output.body.whatever[1].more",
        "dyn(inputs.limit) == 'x'",
    ],
)
def test_what_may_be_right_is_left_to_the_run(cel: str) -> None:
    assert problems(value='"${{ ' + cel + ' }}"') == []


@pytest.mark.parametrize("cel", ["inputs.limit", "steps.read.output.rows", "inputs.name + 'x'", "size(inputs.ids)"])
def test_a_condition_that_is_neither_true_nor_false_is_found(cel: str) -> None:
    assert problems(condition=cel) == [f"25:9: the condition `{cel}` is neither true nor false"]


@pytest.mark.parametrize("cel", ["inputs.flag", "steps.call.output.body.ok", "inputs.limit > 1", "'a' in inputs.ids"])
def test_a_condition_may_be_true_or_false_or_unknown(cel: str) -> None:
    assert problems(condition=cel) == []


@pytest.mark.parametrize("cel", ["steps.read.output.rows", "inputs.ids", "[1]", "inputs.more", "null"])
def test_what_cannot_stand_inside_a_text_is_found(cel: str) -> None:
    (problem,) = problems(value='"a ${{ ' + cel + ' }}"')
    assert "cannot stand inside a text" in problem
    (problem,) = problems(value='"${{ ' + cel + ' }}"')
    assert "expected a text; the expression gives " in problem
    assert problems(value='"${{ dyn(' + cel + ') }}"') == []


def test_the_context_is_held_against_types_too() -> None:
    (problem,) = problems(context='"${{ inputs.limit + true }}"')
    assert problem.startswith("12:9: `inputs.limit + true`")


def test_sql_that_is_too_deep_to_be_looked_into_is_found() -> None:
    deep = "SELECT 1" + " + 1" * 300
    text = TEXT.format(value="a", condition="true", context="a").replace("sql: SELECT 1", f"sql: {deep}")
    text = text.replace("role: r", "privileges: [{ select: t, columns: [id] }]")
    found = lint(load_text(text, filename="w.yaml", actions=catalog))
    assert [(each.line, each.severity) for each in found if "too large" in each.message] == [(17, "error")]


KINDS = """version: 1
name: w
agent: a
inputs:
  list: {{ type: array, default: [] }}
  map: {{ type: object, default: {{}} }}
  text: {{ type: string, default: "" }}
  n: {{ type: integer, default: 1 }}
  x: {{ type: number, default: 1 }}
  yes: {{ type: boolean, default: true }}
steps:
  rows:
    action: postgres.query
    grants: {{ db: {{ kind: database, connection: c, role: r }} }}
    with: {{ sql: SELECT 1 AS one }}
    outputs: [rows, row_count]
  work:
    action: {action}
    with: {{ {given} }}
"""


def kinds(action: str, given: str) -> list[tuple[int, str]]:
    text = KINDS.format(action=action, given=given)
    try:
        load_text(text, filename="w.yaml", actions=catalog)
    except InvalidWorkflow as error:
        return [(problem.line, problem.message) for problem in error.problems]
    return []


@pytest.mark.parametrize(
    ("action", "given", "said"),
    [
        ("exec", "command: [/bin/echo, '${{ inputs.list }}']", "expected a text; the expression gives a list"),
        ("exec", "command: [/bin/echo, '${{ inputs.map }}']", "expected a text; the expression gives a map"),
        (
            "exec",
            "command: [/bin/echo, '${{ steps.rows.output.rows }}']",
            "expected a text; the expression gives a list",
        ),
        ("exec", "command: '${{ inputs.text }}'", "expected a list; the expression gives a text"),
        (
            "exec",
            "command: [a], environment: { A: '${{ [inputs.n] }}' }",
            "expected a text; the expression gives a list",
        ),
        ("exec", "command: [a], environment: '${{ inputs.list }}'", "expected a map; the expression gives a list"),
        ("http.request", "url: 'https://a.example/', headers: { A: '${{ inputs.map }}' }", "expected a text"),
        (
            "python",
            "callable: 'a:b', arguments: '${{ inputs.yes }}'",
            "expected a map; the expression gives a truth value",
        ),
    ],
)
def test_what_can_only_be_of_another_kind_is_told_at_its_place(action: str, given: str, said: str) -> None:
    ((line, message),) = kinds(action, given)
    assert line == 19
    assert message.startswith(said)


@pytest.mark.parametrize(
    ("action", "given"),
    [
        (
            "exec",
            "command: [/bin/echo, '${{ inputs.n }}', '${{ inputs.x }}', '${{ inputs.yes }}', '${{ inputs.text }}']",
        ),
        ("exec", "command: [/bin/echo, '${{ dyn(inputs.list) }}', '${{ inputs.map.name }}', '${{ inputs.list[0] }}']"),
        ("exec", "command: [/bin/echo, '${{ steps.rows.output.rows[0].one }}', '${{ steps.rows.output.row_count }}']"),
        ("exec", "command: '${{ inputs.list }}', environment: '${{ inputs.map }}', stdin: '${{ inputs.map }}'"),
        ("exec", "command: [a], max_bytes: '${{ inputs.text }}'"),
        ("http.request", "url: '${{ inputs.text }}', query: { a: '${{ inputs.n }}', b: '${{ inputs.list }}' }"),
        ("python", "callable: 'a:b', arguments: { a: '${{ inputs.list }}' }"),
    ],
)
def test_a_parameter_that_may_be_right_is_left_to_the_run(action: str, given: str) -> None:
    assert kinds(action, given) == []
