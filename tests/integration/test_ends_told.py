"""Whom a workflow wants told how its run ended: told once it is known, recorded, also where the process died."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from bench import Bench
from waiting import wait_for
from webhooks import webhook

from orchestrator.actions.catalog import catalog
from orchestrator.clock import SystemClock
from orchestrator.errors import ExitCode
from orchestrator.ledger.events import RunFinished, RunNotified
from orchestrator.ledger.opening import open_ledger
from orchestrator.secret import Secret
from orchestrator.workflow.loader import load_text

WORKFLOW = """
version: 1
name: told
agent: tester
notify:
{notify}
steps:
  work:
    action: postgres.query
    grants:
      db: {{ kind: database, connection: support, role: feedback-read }}
    with: {{ sql: "{sql}" }}
"""
COMMAND = [sys.executable, "-m", "orchestrator.cli"]
FAILS = "SELECT 1/0"


def workflow(notify: str = "  - to: oncall", sql: str = FAILS) -> str:
    return WORKFLOW.format(notify=notify, sql=sql)


def test_a_failure_is_told_before_the_run_has_its_end_on_record(bench: Bench) -> None:
    with webhook(bench) as hook:
        outcome = bench.run(workflow(), notify={"oncall": Secret(hook.url)}, reason="nightly")
        assert outcome.exit_code is ExitCode.STEP_FAILED
        (message,) = hook.messages
        assert message["text"].startswith("told failed: ")
        assert "division by zero" in message["text"]
        assert message["id"] == f"{outcome.run_id}/end"
        told = {name: message[name] for name in ("run", "workflow", "agent", "trigger", "state", "exit_code", "failed")}
        assert told == {
            "run": outcome.run_id,
            "workflow": "told",
            "agent": "tester",
            "trigger": "manual",
            "state": "failed",
            "exit_code": 4,
            "failed": ["work"],
        }
        assert hook.logins == []  # nothing is held any more when somebody is told
        assert [type(event) for event in bench.events[-2:]] == [RunNotified, RunFinished]
        assert hook.secret not in repr(bench.events) + repr(outcome)
        everything = b"".join(path.read_bytes() for path in bench.directory.rglob("*") if path.is_file())
        assert hook.secret.encode() not in everything
    bench.assert_nothing_left()


@pytest.mark.parametrize(
    ("when", "sql", "messages"),
    [
        ("on_failure", "SELECT 1", 0),
        ("on_success", "SELECT 1", 1),
        ("on_success", FAILS, 0),
        ("always", "SELECT 1", 1),
        ("always", FAILS, 1),
    ],
)
def test_each_is_told_of_the_ends_that_were_asked_for(bench: Bench, when: str, sql: str, messages: int) -> None:
    with webhook(bench) as hook:
        bench.run(workflow(f"  - {{ to: oncall, when: {when} }}", sql), notify={"oncall": Secret(hook.url)})
        assert len(hook.messages) == messages


def test_one_who_is_named_twice_is_told_once(bench: Bench) -> None:
    with webhook(bench) as hook:
        notify = "  - { to: oncall }\n  - { to: oncall, when: always }"
        bench.run(workflow(notify), notify={"oncall": Secret(hook.url)})
        assert len(hook.messages) == 1


def test_who_cannot_be_told_changes_nothing_of_the_outcome_and_it_is_on_record(bench: Bench) -> None:
    with webhook(bench, lambda number: 400) as hook:
        outcome = bench.run(
            workflow("  - { to: oncall, when: always }", "SELECT 1"), notify={"oncall": Secret(hook.url)}
        )
        assert outcome.exit_code is ExitCode.DONE
        (told,) = [event for event in bench.events if isinstance(event, RunNotified)]
        assert (told.to, told.error) == ("oncall", "`oncall` could not be told: it answered 400")


def test_who_is_not_in_the_settings_is_said_before_the_first_step(bench: Bench) -> None:
    outcome = bench.run(workflow(sql="SELECT 1"))
    assert outcome.exit_code is ExitCode.INVALID
    assert "the settings know no destination `oncall`" in outcome.reason
    assert "ORCHESTRATOR_NOTIFY__ONCALL" in str(outcome.errors["(before the first step)"])
    assert bench.history(outcome.run_id) == []


@pytest.mark.parametrize("command", [["leases", "sweep"], ["runs", "resume", "r1"]])
def test_of_a_run_whose_process_died_whoever_ends_it_tells(bench: Bench, command: list[str], tmp_path: Path) -> None:
    text = workflow(sql="SELECT pg_sleep(60)").replace("  work:\n", "  work:\n    on_crash: fail\n")
    bench.install(load_text(text, filename="w.yaml", actions=catalog).workflow)
    (tmp_path / "w.yaml").write_text(text)
    with webhook(bench) as hook:
        environment = bench.environment(ORCHESTRATOR_POLICY="allow-all", ORCHESTRATOR_NOTIFY__ONCALL=hook.url)
        with (tmp_path / "out").open("w") as out:
            run = [*COMMAND, "run", str(tmp_path / "w.yaml"), "--run-id", "r1"]
            died = subprocess.Popen(run, env=environment, stdout=out, stderr=out)
        active = "SELECT pid FROM pg_stat_activity WHERE usename LIKE 'orc\\_%' AND wait_event = 'PgSleep'"
        wait_for(lambda: bench.sql(active), "the step to query")
        died.kill()
        died.wait()
        done = subprocess.run([*COMMAND, *command], env=environment, capture_output=True, text=True, timeout=120)
        if command[0] == "leases":
            assert [message["state"] for message in hook.messages] == ["interrupted"], done.stdout + done.stderr
        else:
            assert done.returncode == 4, done.stdout + done.stderr
            assert [(message["state"], message["failed"]) for message in hook.messages] == [("failed", ["work"])]
        with open_ledger(f"sqlite:///{bench.directory / 'ledger.db'}", clock=SystemClock()) as ledger:
            assert ledger.verify("r1") is None
            told = [event for event in ledger.events("r1") if event.kind == RunNotified.kind]
            assert [event.data["error"] for event in told] == [""]
        shown = subprocess.run([*COMMAND, "runs", "show", "r1"], env=environment, capture_output=True, text=True)
        assert "oncall" in shown.stdout
        assert json.dumps(hook.secret) not in shown.stdout
    bench.assert_nothing_left()
