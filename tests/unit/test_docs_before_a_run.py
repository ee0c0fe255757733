"""`docs/before-a-run.md` says of outputs and of its example what the program says."""

from __future__ import annotations

import re
from typing import get_args

import pytest
from bench import ROOT

from orchestrator.actions.catalog import catalog
from orchestrator.planning.lint import lint
from orchestrator.workflow.loader import load_text

TEXT = (ROOT / "docs" / "before-a-run.md").read_text()
ROW = next(line for line in TEXT.splitlines() if line.startswith("| `outputs` |"))


def told(action: str) -> set[str]:
    """The keys that the table names for an action."""
    part = ROW.partition(f"of `{action}`" if action != "sql" else "of SQL")[2].partition(";")[0].partition(".")[0]
    return set(re.findall(r"`(\w+)`", part))


@pytest.mark.parametrize("name", ["http.request", "slack.post_message", "aws.call"])
def test_the_keys_of_an_output_are_those_of_the_program(name: str) -> None:
    model = catalog.params_of(name)
    assert model is not None
    assert told(name) == model.output_keys({})


@pytest.mark.parametrize("name", ["postgres.query", "postgres.execute"])
def test_so_are_those_of_sql(name: str) -> None:
    model = catalog.params_of(name)
    assert model is not None
    assert told("sql") == model.output_keys({})


def test_those_of_a_program_are_as_its_output_says() -> None:
    model = catalog.params_of("exec")
    assert model is not None
    forms = get_args(model.model_fields["output"].annotation)
    assert told("exec") - {"output"} == set().union(*(model.output_keys({"output": form}) for form in forms))
    assert model.output_keys({"output": "none"}) == {"exit_code"}
    python = catalog.params_of("python")
    assert python is not None
    assert python.output_keys({}) is None


def test_the_example_is_a_step_of_a_valid_workflow() -> None:
    example = TEXT.partition("```yaml\n")[2].partition("```")[0]
    head = "version: 1\nname: w\nagent: a\ninputs: { title: { type: string } }\n"
    assert lint(load_text(head + example, filename="w.yaml", actions=catalog)) == []
