"""`docs/steps.md` shows workflows that are valid, and names the variables that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from orchestrator.actions.catalog import catalog
from orchestrator.ledger.events import RunNotified
from orchestrator.ledger.states import StepState
from orchestrator.workflow.cel.template import ROOTS
from orchestrator.workflow.checks import RUN_PARTS, TASK_PARTS
from orchestrator.workflow.loader import load_text
from orchestrator.workflow.models.steps import MOST_ITEMS

TEXT = (Path(__file__).parents[2] / "docs" / "steps.md").read_text()
BLOCKS = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
VARIABLES = TEXT[TEXT.index("## What expressions see") : TEXT.index("## Files beside")]


def test_there_is_something_to_look_at() -> None:
    assert len(BLOCKS) == 3


@pytest.mark.parametrize("block", BLOCKS)
def test_each_workflow_is_valid(block: str) -> None:
    steps = "" if "steps:" in block else "steps: { one: { action: exec, with: { command: [/bin/true] } } }\n"
    assert load_text(f"version: 1\nname: w\nagent: a\n{block}{steps}", filename="w.yaml", actions=catalog)


def test_every_variable_is_in_the_table() -> None:
    assert {root for root in ROOTS if f"`{root}" in VARIABLES} == set(ROOTS)
    for name in RUN_PARTS:
        assert f"`run.{name}`" in VARIABLES
    assert f"`task.{TASK_PARTS[0]}`" in VARIABLES
    for state in (StepState.SUCCEEDED, StepState.FAILED, StepState.REFUSED, StepState.SKIPPED, StepState.CANCELLED):
        assert f"`{state.value}`" in VARIABLES


def test_figures_and_names_are_those_of_the_code() -> None:
    assert f"{MOST_ITEMS:,} items at most" in TEXT
    assert f"`{RunNotified.kind}`" in TEXT
