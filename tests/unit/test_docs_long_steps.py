"""The workflow in the documentation of long steps is one."""

from __future__ import annotations

import re
from pathlib import Path

from orchestrator.actions.catalog import catalog
from orchestrator.grants.scope import normalise
from orchestrator.workflow.loader import load_text

DOCUMENT = Path(__file__).parents[2] / "docs" / "long-steps.md"


def test_the_example_is_a_valid_workflow_and_its_plan_says_what_happens() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    step = load_text(text, filename=DOCUMENT.name, actions=catalog).workflow.steps["export"]
    scope = normalise("db", step.grants["db"], step_timeout=step.timeout)
    assert scope.describe() == "database support as export-read, 15m, issued anew when it cannot be renewed"
    assert scope.as_json() | {"on_expiry": "reissue", "overlap": 30} == scope.as_json()
