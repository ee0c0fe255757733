"""What is wrong with an installation is found by `orchestrator doctor`, each fault planted on real servers."""

from __future__ import annotations

import io
import json
import os
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
from bench import ROOT, Bench

from orchestrator.cli.main import main

WORKFLOW = ROOT / "workflows" / "customer_feedback.yaml"


@dataclass(frozen=True)
class Report:
    """What the command said; `code` is its exit code."""

    code: int
    findings: list[dict[str, str]]
    text: str

    def of(self, area: str, mark: str = "fault") -> list[str]:
        """What was found there, each with its advice."""
        return [
            f"{each['found']}; {each['advice']}"
            for each in self.findings
            if (each["area"], each["mark"]) == (area, mark)
        ]

    def faults(self) -> list[tuple[str, str]]:
        return [(each["area"], each["found"]) for each in self.findings if each["mark"] == "fault"]


def orchestrator(
    bench: Bench, *arguments: str, home: Path | None = None, **changes: str | None
) -> tuple[int, str, str]:
    """The command in this process, with these variables besides the runtime's; None takes one away."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as changed, redirect_stdout(out), redirect_stderr(err):
        for name in os.environ:
            if name.startswith(("ORCHESTRATOR_", "VAULT_")):
                changed.delenv(name)
        for name, value in {**bench.environment(), "HOME": str(home or bench.directory), **changes}.items():
            changed.delenv(name, raising=False) if value is None else changed.setenv(name, value)
        changed.chdir(bench.directory)
        code = main(list(arguments))
    return code, out.getvalue(), err.getvalue()


def doctor(bench: Bench, *arguments: str, **changes: str | None) -> Report:
    code, out, err = orchestrator(bench, "doctor", *arguments, "--json", **changes)
    told = json.loads(out)
    assert told["sound"] is (code == 0), err
    secrets = [bench.provisioned.secret_id.reveal(), bench.info.root_token.reveal()]
    assert not [secret for secret in secrets if secret in out + err]
    return Report(code, told["findings"], out + err)


def test_a_sound_installation_has_nothing_wrong(bench: Bench) -> None:
    report = doctor(bench, str(ROOT / "workflows"))
    print(json.dumps(report.findings, indent=1))
    assert report.faults() == []
    assert report.code == 0
