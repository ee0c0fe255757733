from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from orchestrator.actions.catalog import action, catalog
from orchestrator.errors import UsageError

NAMES = ["exec", "http.request", "postgres.execute", "postgres.query", "python", "slack.post_message"]
WORKFLOW = Path(__file__).parents[2] / "workflows" / "customer_feedback.yaml"


def test_every_built_in_action_is_found_by_its_name() -> None:
    assert set(NAMES) <= set(catalog.names())
    for name in NAMES:
        assert action(name).summary.endswith(".")
        assert catalog.params_of(name) is action(name).params
        assert action(name).params.model_json_schema()["additionalProperties"] is False


def test_an_unknown_action_has_no_parameters_and_a_near_name() -> None:
    assert catalog.params_of("postgres.querry") is None
    with pytest.raises(UsageError, match=r"did you mean `postgres.query`\?"):
        action("postgres.querry")


def test_the_sample_workflow_uses_parameters_that_exist() -> None:
    for step in YAML(typ="safe").load(WORKFLOW)["steps"].values():
        model = catalog.params_of(step["action"])
        assert model is not None
        names = {field.alias or name for name, field in model.model_fields.items()}
        assert set(step["with"]) <= names


def test_importing_all_actions_imports_no_driver() -> None:
    modules = sorted({point.module for point in entry_points(group="orchestrator.actions")})
    heavy = ["psycopg", "httpx", "slack_sdk", "aiohttp", "pglast", "ctypes.util"]
    code = (
        f"import sys, importlib\nfor name in {modules}: importlib.import_module(name)\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
