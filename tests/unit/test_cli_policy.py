"""`orchestrator policy` as its users call it: what it prints, its exit codes, and what it needs of the settings."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from bench import ROOT
from test_cli_process import COMMAND, orchestrator

from orchestrator.cli.commands.policy import _percent

SAMPLE = ROOT / "workflows" / "policies"
VALID = 'package orchestrator\n\nimport rego.v1\n\ndecision := {"allow": false}\n'
BROKEN = 'package orchestrator\n\nimport rego.v1\n\ndecision := {"allow": who}\n'
TESTS = """package orchestrator_test

import rego.v1

test_denies if data.orchestrator.decision.allow == false

test_allows if data.orchestrator.decision.allow == true

todo_test_later if false
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "policies"
    path.mkdir()
    (path / "rules.rego").write_text(VALID)
    (path / "rules_test.rego").write_text(TESTS)
    return path


def test_the_sample_policy_holds_its_own_tests_and_these_cover_it() -> None:
    done = orchestrator("policy", "test", str(SAMPLE), "--min-coverage", "95", "--coverage")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    for file in ("orchestrator.rego", "reasons.rego", "shape.rego"):
        assert f"{file}: " in done.stdout
    assert "_test.rego" not in done.stdout
    assert "passed" in done.stdout.splitlines()[-1]


def test_the_sample_policy_is_valid() -> None:
    done = orchestrator("policy", "check", str(SAMPLE))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("policies: valid (5 files)\n")


def test_the_starter_denies_and_its_commands_pass_at_once(tmp_path: Path) -> None:
    made = orchestrator("policy", "init", "mine", cwd=tmp_path)
    assert made.returncode == 0
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == [
        "data.json",
        "orchestrator.rego",
        "orchestrator_test.rego",
    ]
    commands = [line.split("#")[0].split() for line in made.stdout.splitlines() if line.startswith("  orchestrator ")]
    assert [command[2] for command in commands] == ["check", "test"]
    for command in (*commands, ["orchestrator", "policy", "test", "mine", "--min-coverage", "95"]):
        done = orchestrator(*command[1:], cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    (tmp_path / "w.yaml").write_text(
        "version: 1\nname: w\nagent: ann\n"
        "steps:\n  tell:\n    action: exec\n    with: { command: [/bin/echo, hello] }\n"
    )
    planned = orchestrator("plan", "w.yaml", cwd=tmp_path, ORCHESTRATOR_POLICY_PATH="mine")
    assert planned.returncode == 3
    assert "agent `ann` is not known: write an entry for it under `agents` in data.json" in planned.stdout


@pytest.mark.parametrize("name", ["orchestrator.rego", "data.json", "orchestrator_test.rego"])
def test_the_starter_overwrites_nothing_unless_it_is_told_to(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    refused = orchestrator("policy", "init", str(tmp_path))
    assert refused.returncode == 2
    assert refused.stderr == f"error: {tmp_path / name} is there already\nhint: --force overwrites it\n"
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"
    assert orchestrator("policy", "init", str(tmp_path), "--force").returncode == 0
    assert (tmp_path / name).read_text() != "mine"
    assert orchestrator("policy", "check", str(tmp_path)).returncode == 0


def test_a_folder_that_cannot_be_written_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = orchestrator("policy", "init", str(tmp_path / "file" / "policies"))
    assert done.returncode == 2
    assert "cannot be written: Not a directory" in done.stderr


def test_problems_are_told_with_place_excerpt_and_hint(folder: Path) -> None:
    (folder / "rules.rego").write_text(BROKEN)
    (folder / "data.json").write_text('{"a": NaN}')
    for word in ("check", "test"):
        done = orchestrator("policy", word, "policies", cwd=folder.parent)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == (
            "policies/data.json:1:7: NaN is no JSON\n"
            "  |\n"
            '1 | {"a": NaN}\n'
            "  |       ^\n"
            "policies/rules.rego:5:23: the variable `who` comes from nowhere\n"
            "  |\n"
            '5 | decision := {"allow": who}\n'
            "  |                       ^\n"
            "2 problems found\n"
        )


def test_problems_as_json(folder: Path) -> None:
    done = orchestrator("policy", "check", str(folder), "--json")
    assert json.loads(done.stdout) == {
        "valid": True,
        "files": [str(folder / "rules.rego"), str(folder / "rules_test.rego")],
        "problems": [],
    }
    (folder / "rules.rego").write_text(BROKEN)
    done = orchestrator("policy", "check", str(folder), "--json")
    assert done.returncode == 2
    (problem,) = json.loads(done.stdout)["problems"]
    assert (problem["file"], problem["line"], problem["column"]) == (str(folder / "rules.rego"), 5, 23)
    done = orchestrator("policy", "test", str(folder), "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout) == {"passed": False, "problems": [problem]}


def test_failing_tests_are_named_with_their_place_and_reason(folder: Path) -> None:
    done = orchestrator("policy", "test", "policies", cwd=folder.parent)
    assert (done.returncode, done.stderr) == (2, "")
    assert done.stdout == (
        "FAILED  data.orchestrator_test.test_allows  policies/rules_test.rego:7\n"
        "  is undefined; looked at last, in line 7: test_allows if data.orchestrator.decision.allow == true\n"
        "3 tests: 1 passed, 1 failed, 1 todo\n"
    )


def test_tests_that_pass_are_shown_when_asked_for(folder: Path) -> None:
    done = orchestrator("policy", "test", str(folder), "--verbose", "--run", "denies|later")
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["PASSED", "TODO", "2"]
    quiet = orchestrator("policy", "test", str(folder), "--run", "denies|later")
    assert quiet.stdout == "2 tests: 1 passed, 1 todo\n"


def test_results_as_json(folder: Path) -> None:
    done = orchestrator("policy", "test", str(folder), "--json")
    assert done.returncode == 2
    told = json.loads(done.stdout)
    assert told["passed"] is False
    assert [(test["name"].rpartition(".")[2], test["state"], test["line"]) for test in told["tests"]] == [
        ("test_denies", "passed", 5),
        ("test_allows", "failed", 7),
        ("todo_test_later", "todo", 9),
    ]
    assert told["coverage"] == {
        "percent": 100.0,
        "files": [{"file": str(folder / "rules.rego"), "covered": [5], "missed": [], "percent": 100.0}],
    }


def test_too_little_covered_fails_and_shows_what_is_not(folder: Path) -> None:
    (folder / "rules.rego").write_text(f"{VALID}\nnever if input.a\n\nnor if {{\n\tinput.b\n\tinput.c\n}}\n")
    chosen = ("policy", "test", "policies", "--run", "denies")
    assert orchestrator(*chosen, cwd=folder.parent).stdout == "1 test: 1 passed\n"
    assert orchestrator(*chosen, "--min-coverage", "25", cwd=folder.parent).returncode == 0
    done = orchestrator(*chosen, "--min-coverage", "25.1", cwd=folder.parent)
    assert done.returncode == 2
    assert done.stderr == "error: 25 % of the lines are covered, fewer than 25.1 %\n"
    assert done.stdout == (
        "policies/rules.rego: 1 of 4 lines covered (25 %), not lines 7, 10-11\ncovered in all: 25 %\n1 test: 1 passed\n"
    )
    assert (
        json.loads(orchestrator(*chosen, "--min-coverage", "26", "--json", cwd=folder.parent).stdout)["passed"] is False
    )


def test_only_every_line_is_a_hundred_percent() -> None:
    assert [_percent(value) for value in (0, 33.333, 99.99, 100.0)] == ["0 %", "33.3 %", "99.9 %", "100 %"]


def test_no_test_is_an_error(folder: Path) -> None:
    assert orchestrator("policy", "test", str(folder), "--run", "nothing").returncode == 2
    (folder / "rules_test.rego").unlink()
    done = orchestrator("policy", "test", str(folder))
    assert done.returncode == 2
    assert "has no tests" in done.stderr


def test_the_folder_is_that_of_the_settings_and_nothing_else_has_to_be_valid(folder: Path) -> None:
    told = {"ORCHESTRATOR_VAULT_ADDR": "no address", "ORCHESTRATOR_LEDGER_URL": "nothing", "ORCHESTRATOR_GRACE": "x"}
    done = orchestrator("policy", "check", cwd=folder, ORCHESTRATOR_POLICY_PATH=str(folder), **told)
    assert (done.returncode, done.stdout) == (0, f"{folder}: valid (2 files)\n")
    config = folder.parent / "settings.toml"
    config.write_text(f'policy_path = "{folder}"\nvault_addr = 5\n')
    assert orchestrator("policy", "check", cwd=folder, ORCHESTRATOR_CONFIG=str(config), **told).returncode == 0
    config.write_text("policy_path = 5\n")
    assert "`policy_path` is not a text" in orchestrator("policy", "check", ORCHESTRATOR_CONFIG=str(config)).stderr
    config.write_text("policy_path = \n")
    assert "is not valid TOML" in orchestrator("policy", "check", ORCHESTRATOR_CONFIG=str(config)).stderr
    default = orchestrator("policy", "check", cwd=folder.parent)
    assert default.returncode == 2
    assert f"{folder.parent}/.config/orchestrator/policies is not a folder" in default.stderr


@pytest.mark.parametrize("word", ["check", "test"])
def test_what_is_no_folder_of_policies_is_told_without_a_traceback(tmp_path: Path, word: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for name, said in (("nowhere", "is not a folder"), ("file", "is not a folder"), ("empty", "has no policy in it")):
        done = orchestrator("policy", word, str(tmp_path / name))
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: {tmp_path / name} {said}")
        assert "hint: name a folder" in done.stderr


def test_files_that_cannot_be_read_are_told_beside_what_is_wrong_elsewhere(folder: Path) -> None:
    (folder / "a.rego").symlink_to("nowhere")
    (folder / "b.rego").write_bytes(b"\xff")
    (folder / "c.rego").write_text("package\n")
    done = orchestrator("policy", "check", "policies", cwd=folder.parent)
    assert done.returncode == 2
    assert "policies/a.rego: cannot be read as UTF-8 text: a link to nowhere\n" in done.stderr
    assert "policies/b.rego: cannot be read as UTF-8 text: 'utf-8' codec" in done.stderr
    assert "policies/c.rego:2:1: expecting identifier" in done.stderr
    assert done.stderr.endswith("3 problems found\n")


def test_what_files_hold_cannot_reach_the_terminal_as_it_is(folder: Path) -> None:
    (folder / "rules.rego").write_text(f"{VALID}\nx := \x1b[31m\n")
    (folder / "rules_test.rego").write_text(TESTS)
    done = orchestrator("policy", "check", str(folder))
    assert done.returncode == 2
    assert "\x1b" not in done.stderr
    assert "\\x1b[31m" in done.stderr


def test_tests_without_end_are_ended(folder: Path) -> None:
    (folder / "rules_test.rego").write_text(f"{TESTS}\ntest_endless if {ENDLESS}\n")
    done = orchestrator("policy", "test", str(folder), "--run", "denies|endless", "--timeout", "1")
    assert done.returncode == 2
    assert "test_endless" in done.stdout
    assert "no answer yet after 1 s" in done.stdout


ENDLESS = "count([x | some x in numbers.range(1, 100000); some y in numbers.range(1, 100000); x == y]) == 1"


def test_an_interruption_ends_the_tests_and_leaves_nothing(folder: Path) -> None:
    (folder / "rules_test.rego").write_text(f"{TESTS}\ntest_endless if {ENDLESS}\n")
    with subprocess.Popen(
        [*COMMAND, "policy", "test", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PATH": os.environ["PATH"], "HOME": str(folder)},
    ) as running:
        evaluators = _wait_for_evaluators(running.pid)
        running.send_signal(signal.SIGINT)
        output, complaints = running.communicate(timeout=30)
    assert running.returncode == 130
    assert (output, complaints) == ("", "")
    assert [pid for pid in evaluators if _is_evaluator(pid)] == []


def test_an_evaluator_whose_command_was_killed_ends_by_itself(folder: Path) -> None:
    (folder / "rules_test.rego").write_text(f"{TESTS}\ntest_endless if {ENDLESS}\n")
    with subprocess.Popen(
        [*COMMAND, "policy", "test", str(folder), "--timeout", "1.5"],
        stdout=subprocess.DEVNULL,
        env={"PATH": os.environ["PATH"], "HOME": str(folder)},
    ) as running:
        evaluators = _wait_for_evaluators(running.pid)
        running.kill()
    deadline = time.monotonic() + 60
    while any(_is_evaluator(pid) for pid in evaluators):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _wait_for_evaluators(pid: int) -> list[int]:
    """The processes in which a command evaluates, as soon as there is one."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        children = [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        if found := [child for child in children if _is_evaluator(child)]:
            return found
        time.sleep(0.02)
    raise AssertionError("nothing is evaluated")


def _is_evaluator(pid: int) -> bool:
    try:
        return b"authoring/child.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


@pytest.mark.parametrize("word", ["init", "check", "test"])
def test_every_command_explains_itself(word: str) -> None:
    shown = orchestrator("policy", word, "--help")
    assert shown.returncode == 0
    assert f"Usage: orchestrator policy {word}" in shown.stdout
    assert "policy" in orchestrator("--help").stdout
