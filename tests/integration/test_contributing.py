"""The examples of CONTRIBUTING.md, as they stand there: a package with an action and a policy engine, and a new kind
of grant in a copy of the code."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from bench import ROOT, Bench

from orchestrator import extensions
from orchestrator.actions import catalog as actions
from orchestrator.devstack.session import admin_environment, runtime_environment
from orchestrator.errors import ExitCode
from orchestrator.ledger.lease import LeaseState
from orchestrator.policy.opening import open_engine
from orchestrator.settings import PREFIX

PAGE = (ROOT / "CONTRIBUTING.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
FILES = {match[1]: text for _, text in BLOCKS if (match := re.match(r"# (\S+\.\w+)\n", text))}
"""Whole files: their first line is a comment with their path."""
DIFFS = [text for language, text in BLOCKS if language == "diff"]


def register(folder: Path, points: dict[str, dict[str, str]]) -> None:
    """What installing a package leaves of its entry points: `entry_points.txt` (PyPA's specification of that name)."""
    metadata = folder / "acme_steps-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-steps\nVersion: 1.0\n")
    sections = [
        "\n".join([f"[{group}]", *(f"{name} = {place}" for name, place in named.items())])
        for group, named in points.items()
    ]
    (metadata / "entry_points.txt").write_text("\n\n".join(sections))


def forget_extensions() -> None:
    for cached in (extensions._by_name, extensions.load, actions.action):
        cached.cache_clear()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package of the page, installed for one test."""
    folder = tmp_path / "site"
    folder.mkdir()
    for name, text in FILES.items():
        if name.startswith("acme_"):
            (folder / name).write_text(text)
    register(folder, tomllib.loads(FILES["pyproject.toml"])["project"]["entry-points"])
    monkeypatch.syspath_prepend(str(folder))
    forget_extensions()
    yield
    for name in FILES:
        sys.modules.pop(name.removesuffix(".py"), None)
    forget_extensions()


def test_the_action_runs_with_the_login_of_its_own_step(package: None, bench: Bench) -> None:
    with psycopg.connect(bench.info.support_dsn.reveal(), autocommit=True) as listening:
        listening.execute("LISTEN feedback")
        outcome = bench.run(FILES["announce.yaml"])
        assert outcome.exit_code == ExitCode.DONE, outcome
        (heard,) = list(listening.notifies(timeout=5, stop_after=1))
    assert heard.payload == "new feedback is there"
    assert {lease.state for lease in bench.history(outcome.run_id)} == {LeaseState.REVOKED}


def test_the_engine_denies_while_a_freeze_is_on(package: None, bench: Bench, tmp_path: Path) -> None:
    policies = tmp_path / "policies"
    policies.mkdir()
    (policies / "all.rego").write_text('package orchestrator\n\ndecision := {"allow": true, "reasons": []}\n')
    engine = open_engine("acme-freeze", path=policies)
    assert bench.run(FILES["announce.yaml"], policy=engine).exit_code == ExitCode.DONE
    (policies / "FREEZE").touch()
    refused = bench.run(FILES["announce.yaml"], policy=engine)
    assert refused.exit_code == ExitCode.REFUSED
    assert "a change freeze is on" in refused.reason
    assert bench.history(refused.run_id) == []


def apply(diff: str, root: Path) -> None:
    """Replace what a diff takes out, in its context, by what it puts in; it must be there exactly once."""
    header, *lines = diff.splitlines()
    assert header.startswith("--- a/")
    file = root / lines.pop(0).removeprefix("+++ b/")
    before = "\n".join(line[1:] for line in lines if not line.startswith("+"))
    after = "\n".join(line[1:] for line in lines if not line.startswith("-"))
    text = file.read_text()
    assert text.count(before) == 1, f"{file.name} does not hold what the example changes:\n{before}"
    file.write_text(text.replace(before, after))


WORKFLOW = """\
version: 1
name: second_factor
agent: feedback-assistant
steps:
  look:
    action: python
    grants:
      factor: { kind: otp, key: support }
    with: { callable: "looks:length", path: ["%s"] }
    outputs: [digits]
"""
LOOKS = """\
def length(credentials):
    code = credentials["factor"]["code"]
    assert code.isdigit()
    return {"digits": len(code)}
"""


def test_the_new_kind_of_grant_is_provisioned_issued_and_ended(bench: Bench, tmp_path: Path) -> None:
    root = tmp_path / "checkout"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "orchestrator", root / "orchestrator", ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", root)
    for diff in DIFFS:
        apply(diff, root)
    new = "orchestrator/credentials/issuers/otp.py"
    (root / new).write_text(FILES[new])
    points = tomllib.loads((root / "pyproject.toml").read_text())["project"]["entry-points"]["orchestrator.issuers"]
    register(root, {"orchestrator.issuers": {"otp": points["otp"]}})
    workflows = tmp_path / "workflows"
    workflows.mkdir()
    workflow = workflows / "second_factor.yaml"
    workflow.write_text(WORKFLOW % workflows)
    (workflows / "looks.py").write_text(LOOKS)

    def orchestrator(*arguments: str, **real: str) -> subprocess.CompletedProcess[str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith((PREFIX, "VAULT_"))}
        return subprocess.run(
            [sys.executable, "-m", "orchestrator.cli", *arguments],
            env={**inherited, **real, "PYTHONPATH": str(root), "ORCHESTRATOR_POLICY": "allow-all"},
            cwd=root,
            capture_output=True,
            text=True,
            timeout=120,
        )

    vault = bench.vault
    vault.sys.enable_secrets_engine("totp")
    try:
        vault.write_data("totp/keys/support", data={"generate": True, "issuer": "acme", "account_name": "support"})
        admin = admin_environment(bench.provisioned)
        given = ("--workflows", str(workflows), "--declarations", str(bench.declarations))
        applied = orchestrator("provision", "apply", *given, **admin)
        assert applied.returncode == 0, applied.stdout + applied.stderr
        ended = orchestrator("run", str(workflow), "--json", **runtime_environment(bench.provisioned, tmp_path))
        assert ended.returncode == 0, ended.stdout + ended.stderr
        listed = orchestrator("leases", "list", **runtime_environment(bench.provisioned, tmp_path))
    finally:
        vault.sys.disable_secrets_engine("totp")
    assert re.search(r"ended +look\.factor .* totp/code/support ", listed.stdout), listed.stdout
