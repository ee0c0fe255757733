"""What `validate` and the JSON Schema say of a credential that `http.request` shows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML

from orchestrator.actions.catalog import catalog
from orchestrator.workflow.loader import load_text
from orchestrator.workflow.problems import InvalidWorkflow, Problem
from orchestrator.workflow.schema import json_schema

DOCUMENT = (Path(__file__).parents[2] / "docs" / "http.md").read_text()


def workflow(given: str) -> str:
    return f"""\
version: 1
name: w
agent: a
inputs: {{ which: {{ type: string }} }}
steps:
  one:
    action: http.request
    grants:
      api: {{ kind: secret, path: a/b, keys: [key, user, password] }}
      db: {{ kind: database, connection: c, role: r }}
    with:
      url: https://api.example/
      {given}
"""


def problems(given: str) -> tuple[Problem, ...]:
    with pytest.raises(InvalidWorkflow) as caught:
        load_text(workflow(given), filename="w.yaml", actions=catalog)
    return caught.value.problems


@pytest.mark.parametrize(
    "given",
    [
        "auth: { header: X-Api-Key, value: api.key }",
        'auth: { header: Authorization, prefix: "Token ", value: api.key }',
        "auth: { query: api_key, value: api.key }",
        "auth: { basic: { username: api.user, password: api.password } }",
        "auth: { basic: { username: robot, password: api.password } }",
        "auth: { basic: { username: { text: john.doe }, password: api.password } }",
        "ca: ${{ inputs.which }}",
    ],
)
def test_every_way_is_valid_under_the_loader_and_the_schema(given: str) -> None:
    load_text(workflow(given), filename="w.yaml", actions=catalog)
    jsonschema.validate(YAML(typ="safe", pure=True).load(workflow(given)), json_schema(catalog))


@pytest.mark.parametrize(
    ("given", "message", "column"),
    [
        ("auth: { header: X-Api-Key, value: apo.key }", "the step has no grant `apo`", 41),
        ("auth: { header: X-Api-Key, value: db.password }", "the grant `db` is of kind database", 41),
        ("auth: { basic: { username: apo.user, password: api.password } }", "the step has no grant `apo`", 34),
        ("auth: { basic: { username: robot, password: apo.password } }", "the step has no grant `apo`", 51),
        ("auth: { header: X-Api-Key, value: '${{ inputs.which }}' }", "`auth` of http.request takes no expression", 41),
        ("auth: { header: '${{ inputs.which }}', value: api.key }", "`auth` of http.request takes no expression", 23),
        ("auth: '${{ inputs.which }}'", "`auth` of http.request takes no expression", 13),
        ("auth: { header: X Y, value: api.key }", "not the name of a header that may hold a credential", 23),
        ("auth: { value: api.key }", "name one way", 13),
        ("auth: { header: X-A, valve: api.key }", "unknown key `valve`", 28),
    ],
)
def test_what_is_wrong_is_told_at_its_place(given: str, message: str, column: int) -> None:
    found = [(each.line, each.column) for each in problems(given) if message in each.message]
    assert found, [each.message for each in problems(given)]
    assert (13, column) in found


@pytest.mark.parametrize(
    "auth", [{"header": "${{ inputs.which }}", "value": "api.key"}, "${{ inputs.which }}", {"basic": "${{ inputs.a }}"}]
)
def test_the_schema_takes_no_expression_there_either(auth: Any) -> None:
    data = YAML(typ="safe", pure=True).load(workflow("method: GET"))
    data["steps"]["one"]["with"]["auth"] = auth
    assert not jsonschema.Draft202012Validator(json_schema(catalog)).is_valid(data)


def test_the_workflows_of_the_page_are_valid() -> None:
    found = re.findall(r"```yaml\n(version.*?)```", DOCUMENT, re.DOTALL)
    assert found
    for text in found:
        load_text(text, filename="w.yaml", actions=catalog)
