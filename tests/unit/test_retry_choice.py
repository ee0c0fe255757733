"""Which steps of a failed run count in its retry, and which runs have one."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from orchestrator.actions.catalog import catalog
from orchestrator.errors import UsageError
from orchestrator.ledger.states import RunState, StepState
from orchestrator.ledger.types import RunRecord, StepRecord
from orchestrator.recovery.retries.choice import counted_steps, refuse_what_has_no_retry
from orchestrator.workflow.loader import load_text
from orchestrator.workflow.models.workflow import Workflow

TEXT = """
version: 1
name: chosen
agent: tester
steps:
  a: { action: exec, with: { command: [/bin/echo, a] }, outputs: [stdout] }
  b: { action: exec, with: { command: [/bin/echo, "${{ steps.a.output.stdout }}"] } }
  c: { action: exec, needs: [b], with: { command: [/bin/echo, c] } }
  d: { action: exec, with: { command: [/bin/echo, d] }, continue_on_error: true }
  e: { action: exec, needs: [d], with: { command: [/bin/echo, e] } }
"""
SUCCEEDED = dict.fromkeys("abcde", StepState.SUCCEEDED)


def workflow(*changes: tuple[str, str]) -> Workflow:
    text = TEXT
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    return load_text(text, filename="test.yaml", actions=catalog).workflow


def chosen(states: dict[str, StepState], *changes: tuple[str, str]) -> str:
    records = [StepRecord("run_1", step, state, 1, "exec", None, None, "", None) for step, state in states.items()]
    return "".join(counted_steps(records, workflow(), workflow(*changes)))


@pytest.mark.parametrize("state", [each for each in StepState if each is not StepState.SUCCEEDED])
def test_what_did_not_succeed_runs_again_and_what_needs_it(state: StepState) -> None:
    assert chosen({**SUCCEEDED, "a": state}) == "de"
    assert chosen({**SUCCEEDED, "c": state}) == "abde"
    assert chosen({**SUCCEEDED, "d": state}) == "abc", "a tolerated failure is a failure"


def test_a_step_that_has_no_record_runs() -> None:
    assert chosen({"a": StepState.SUCCEEDED}) == "a"
    assert chosen({"b": StepState.SUCCEEDED}) == "", "what it needs is not there"
    assert chosen({}) == ""


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        (("/bin/echo, a]", "/bin/echo, A]"), "de"),
        (("outputs: [stdout]", "outputs: [stdout, exit_code]"), "de"),
        (("needs: [b]", "needs: [a]"), "abde"),
        (("/bin/echo, c] }", "/bin/echo, c] }, timeout: 5s"), "abde"),
        (("/bin/echo, d] }", "/bin/echo, d] }, if: 'false'"), "abc"),
        (("{ action: exec, needs: [d]", "{ description: words, action: exec, needs: [d]"), "abcde"),
        (("  e:", "  f: { action: exec, with: { command: [/bin/true] } }\n  e:"), "abcde"),
        (("  c:", "  other:"), "abde"),
    ],
)
def test_of_a_mended_file_what_is_declared_otherwise_runs_again_and_what_needs_it(
    change: tuple[str, str], kept: str
) -> None:
    assert chosen(SUCCEEDED, change) == kept


def record(state: RunState = RunState.FAILED, **more: str) -> RunRecord:
    how = {"workflow": "chosen", "trigger": "manual", **more}
    return RunRecord(
        "run_1", how["workflow"], "d", "tester", how["trigger"], {}, state, datetime(2026, 3, 2, tzinfo=UTC), None, 4,
        "", 1, how.get("task"),
    )  # fmt: skip


@pytest.mark.parametrize("state", [RunState.FAILED, RunState.REFUSED, RunState.CANCELLED])
def test_what_failed_has_a_retry_whatever_had_started_it(state: RunState) -> None:
    for trigger in ("manual", "schedule", "retry"):
        refuse_what_has_no_retry(record(state, trigger=trigger))


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (record(RunState.RUNNING), "goes on"),
        (record(RunState.WAITING), "waits for approval"),
        (record(RunState.INTERRUPTED), "was interrupted"),
        (record(RunState.SUCCEEDED), "has succeeded"),
        (record(trigger="prove"), "is a proof"),
        (record(workflow="(sweep)"), "is a sweep"),
        (record(task="task_1"), "is a call in the task task_1"),
    ],
)
def test_what_has_no_retry_is_refused_with_what_to_do_instead(run: RunRecord, words: str) -> None:
    with pytest.raises(UsageError, match=words) as told:
        refuse_what_has_no_retry(run)
    assert told.value.hint
