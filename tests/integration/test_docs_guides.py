"""The tutorial and the guides, command by command, as they stand there, on real servers."""

from __future__ import annotations

import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from bench import ROOT, Bench, surroundings
from prometheus_client import Counter, Gauge, Histogram
from ruamel.yaml import YAML
from waiting import wait_for

from orchestrator.actions.catalog import catalog
from orchestrator.ledger.lease import LeaseState
from orchestrator.telemetry.prometheus import PrometheusMetrics
from orchestrator.workflow.loader import load_text

DEV = "/tmp/orchestrator-dev"
Blocks = list[tuple[str, str]]


def blocks_of(name: str) -> Blocks:
    """The blocks that are to be run or written, in their order."""
    text = (ROOT / "docs" / name).read_text()
    text = re.sub(r"<!-- not run: .*? -->\n```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def write(blocks: Blocks, folder: Path) -> None:
    """The files: their first line is a comment with their path; data of a policy has none."""
    for language, text in blocks:
        named = re.match(r"# (\S+\.\w+)\n", text)
        path = "policies/data.json" if language == "json" else named[1] if named else None
        if path is not None:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)


def shell(script: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{surroundings()['PATH']}"
    return subprocess.run(
        ["sh", "-e", "-c", script],
        cwd=folder,
        env={**surroundings(), "HOME": str(folder), **environment, "PATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def dev(tmp_path: Path) -> Iterator[Path]:
    """The folder of `orchestrator dev`, started by the first block of the tutorial."""
    _, command = blocks_of("tutorial.md")[0]
    assert command == f"orchestrator dev --directory {DEV}\n"
    folder = tmp_path / "dev"
    server = subprocess.Popen(
        [sys.executable, "-m", "orchestrator.cli", "dev", "--directory", str(folder)],
        env=surroundings(),
        stdout=subprocess.PIPE,
        text=True,
    )
    with server:
        wait_for(lambda: (folder / "admin.env").exists() or server.poll() is not None, "the servers")
        assert server.poll() is None
        yield folder
        server.send_signal(signal.SIGINT)


def test_the_tutorial_works_from_its_first_line_to_its_last_and_leaves_no_login(dev: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "vault").symlink_to(ROOT / "vault")
    script = []
    for language, text in blocks_of("tutorial.md")[1:]:
        if language == "sh":
            script.append(text.replace(DEV, str(dev)))
        else:
            path = "policies/data.json" if language == "json" else "workflows/oldest.yaml"
            script.append(f"cat > {path} <<'END'\n{text}END\n")
    ended = shell("\n".join(script), folder)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "read / db: proven" in ended.stdout
    assert re.search(r"revoked +read\.db", ended.stdout), ended.stdout
    dsn = re.search(r"PROVISION_DATABASES__SUPPORT='?([^'\n]+)", (dev / "admin.env").read_text())
    assert dsn
    with psycopg.connect(dsn[1]) as session:
        assert (
            session.execute(r"SELECT rolname FROM pg_roles WHERE rolname LIKE 'orc\_%' AND rolcanlogin").fetchall()
            == []
        )


def test_without_the_entry_in_the_data_the_plan_of_the_tutorial_is_denied(bench: Bench, tmp_path: Path) -> None:
    blocks = blocks_of("tutorial.md")
    write([block for block in blocks if block[0] == "yaml"], tmp_path)
    started = next(text for _, text in blocks if "policy init" in text)
    ended = shell(f"{started}\norchestrator plan workflows/oldest.yaml", tmp_path)
    assert ended.returncode == 3, ended.stdout + ended.stderr
    assert "DENIED" in ended.stdout
    assert "agent `tutorial` is not known" in ended.stdout


def test_a_column_that_the_grant_does_not_name_is_told_with_its_line(tmp_path: Path) -> None:
    write([block for block in blocks_of("tutorial.md") if block[0] == "yaml"], tmp_path)
    file = tmp_path / "workflows" / "oldest.yaml"
    file.write_text(file.read_text().replace("SELECT id, comment", "SELECT loyalty_tier"))
    ended = shell("orchestrator validate workflows", tmp_path)
    assert ended.returncode == 2
    assert re.search(r"oldest\.yaml:\d+:\d+", ended.stdout + ended.stderr)


def test_the_policy_of_the_guide_is_tested_whole_decides_and_is_looked_at(bench: Bench, tmp_path: Path) -> None:
    blocks = blocks_of("write-a-policy.md")
    write(blocks, tmp_path)
    workflow = (tmp_path / "workflows" / "report.yaml").read_text()
    bench.install(load_text(workflow, filename="report.yaml", actions=catalog).workflow)
    policy = tmp_path / "policies" / "orchestrator.rego"
    whole = policy.read_text()
    checks, plan, look = (text for language, text in blocks if language == "sh")
    environment = bench.environment()
    assert shell(checks, tmp_path).returncode == 0, shell(checks, tmp_path).stdout
    planned = shell(plan, tmp_path)
    assert planned.returncode == 0, planned.stdout + planned.stderr
    policy.write_text(whole.replace('{"Saturday", "Sunday"}', "{}"))  # tests run on Sundays, too
    looked = shell(f"export ORCHESTRATOR_POLICY_PATH=$PWD/policies\n{look}", tmp_path, **environment)
    assert looked.returncode == 0, looked.stdout + looked.stderr
    assert "a report may read" in looked.stdout
    assert {lease.state for lease in bench.history("report-1")} == {LeaseState.REVOKED}
    policy.write_text(whole.replace("payment_card", "x").replace('"select"', '"insert"'))
    again = shell("orchestrator policy replay --policy-path policies", tmp_path, **environment)
    assert again.returncode == 4, again.stdout + again.stderr


def test_the_checks_for_a_pipeline_pass_on_the_samples(tmp_path: Path) -> None:
    checks = next(text for language, text in blocks_of("production.md") if "--strict" in text)
    ended = shell(checks, ROOT)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_copy_of_a_ledger_is_whole_also_while_it_is_written(bench: Bench, tmp_path: Path) -> None:
    bench.run("version: 1\nname: w\nagent: a\nsteps: { s: { action: exec, with: { command: [/bin/true] } } }\n")
    copy = next(text for language, text in blocks_of("production.md") if "COPY" in text)
    ledger = bench.directory / "ledger.db"
    environment = bench.environment(LEDGER=str(ledger), COPY=str(tmp_path / "copy.db"))
    with sqlite3.connect(ledger) as writing:
        writing.execute("BEGIN")
        ended = shell(copy, tmp_path, **environment)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    with sqlite3.connect(tmp_path / "copy.db") as session:
        assert session.execute("SELECT count(*) FROM event").fetchone()[0] > 3


ALERTS = YAML(typ="safe", pure=True).load((ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text())
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_is_of_a_metric_and_labels_that_there_are_and_its_runbook_is_a_heading(rule: dict[str, Any]) -> None:
    metrics = [each for each in vars(PrometheusMetrics()).values() if isinstance(each, Counter | Gauge | Histogram)]
    measured = {each.describe()[0].name: set(each._labelnames) for each in metrics}
    names = re.findall(r"\borchestrator_\w+", rule["expr"])
    assert names
    for name in names:
        assert re.sub(r"_(total|bucket)$", "", name) in measured, name
        for label in re.findall(rf"{name}\{{(\w+)=", rule["expr"]):
            assert label in measured[re.sub(r"_(total|bucket)$", "", name)]
    summary = rule["annotations"]["summary"]
    for label in re.findall(r"\$labels\.(\w+)", summary):
        assert f"by ({label})" in rule["expr"]
    assert f"| `{rule['alert']}` |" in (ROOT / "docs" / "production.md").read_text()
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    titles = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(), re.MULTILINE)
    assert anchor in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
