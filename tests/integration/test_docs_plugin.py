"""The package of docs/examples/plugin, built and installed into a folder, does its work on real servers."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
from bench import ROOT, Bench, surroundings
from test_contributing import forget_extensions

from orchestrator.devstack.session import admin_environment
from orchestrator.policy.opening import open_engine
from orchestrator.policy.types import PolicyRequest

PLUGIN = ROOT / "docs" / "examples" / "plugin"
Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that pip has installed the package into."""
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(PLUGIN, folder / "source", ignore=shutil.ignore_patterns("__pycache__"))
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--target", str(folder / "site")]
    command = [sys.executable, "-m", "pip", "install", *options, str(folder / "source")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder / "site"


@pytest.fixture
def orchestrator(installed: Path) -> Command:
    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(installed), str(ROOT)])
        return subprocess.run(
            [sys.executable, "-m", "orchestrator.cli", *arguments],
            env={**surroundings(), "ORCHESTRATOR_POLICY": "allow-all", **environment, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


def test_the_workflow_runs_with_the_action_of_the_package(bench: Bench, orchestrator: Command, tmp_path: Path) -> None:
    workflow = tmp_path / "workflows" / "workflow.yaml"
    workflow.parent.mkdir()
    shutil.copy(PLUGIN / "workflow.yaml", workflow)
    assert orchestrator("validate", str(workflow)).returncode == 0
    given = ("--workflows", str(workflow.parent), "--declarations", str(bench.declarations))
    applied = orchestrator("provision", "apply", *given, **admin_environment(bench.provisioned))
    assert applied.returncode == 0, applied.stdout + applied.stderr
    ended = orchestrator(
        "run", str(workflow), "--run-id", "plugin-1", "--json", **bench.environment(ORCHESTRATOR_POLICY="allow-all")
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    shown = orchestrator("runs", "show", "plugin-1", "--json", **bench.environment())
    with psycopg.connect(bench.info.support_dsn.reveal()) as session:
        rows = session.execute(
            "SELECT loyalty_tier, count(*) FROM customer_feedback GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 3"
        ).fetchall()
    counted = [{"rows": count, "value": value} for value, count in rows]
    assert json.dumps({"values": counted}) in json.dumps(json.loads(shown.stdout), sort_keys=True), shown.stdout
    assert bench.logins() == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [("[values]", "has no `vales`"), ("column: loyalty_tier", "`colum`")],
)
def test_what_is_wrong_with_its_parameters_and_outputs_is_known_before_a_run(
    orchestrator: Command, tmp_path: Path, changed: str, said: str
) -> None:
    workflow = tmp_path / "workflow.yaml"
    wrong = changed.replace("values", "vales").replace("column:", "colum:")
    workflow.write_text((PLUGIN / "workflow.yaml").read_text().replace(changed, wrong))
    refused = orchestrator("validate", str(workflow))
    assert refused.returncode == 2
    assert said in refused.stdout + refused.stderr


@pytest.fixture
def importable(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(installed))
    forget_extensions()
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "acme_steps"]:
        del sys.modules[name]
    forget_extensions()


def asked(day: int | None) -> PolicyRequest:
    time = None if day is None else datetime(2026, 3, day, 12, tzinfo=UTC)
    return PolicyRequest("w", "", "r", "manual", {}, {}, "s", 1, "a", "exec", {}, (), time=time)


def test_the_engine_denies_at_weekends_and_obeys_the_policies_in_the_week(importable: None, tmp_path: Path) -> None:
    def answers(allow: str) -> list[bool]:
        (tmp_path / "all.rego").write_text(f'package orchestrator\n\ndecision := {{"allow": {allow}, "reasons": []}}\n')
        engine = open_engine("acme-weekdays", path=tmp_path)
        return [asyncio.run(engine.decide(asked(day))).allow for day in (6, 7, 8, 9, None)]

    assert answers("true") == [True, False, False, True, True]
    assert answers("false") == [False] * 5
