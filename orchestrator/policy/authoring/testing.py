"""The tests of a folder of policies: evaluated, and what became of each.

A test holds if it is true: not if it is undefined, and not if it has any other value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from orchestrator.errors import UsageError
from orchestrator.jsontypes import JsonObject
from orchestrator.policy.authoring.bounded import Answer, evaluate
from orchestrator.policy.authoring.checking import CheckedFolder
from orchestrator.policy.authoring.coverage import FileCoverage, coverage_of, total_percent
from orchestrator.policy.authoring.discovery import TEST, Case
from orchestrator.policy.engines.rego.problems import problem_of


class State(StrEnum):
    """What became of a test."""

    PASSED = "passed"
    FAILED = "failed"
    TODO = "todo"
    NOT_RUN = "not run"
    """There was no time left for it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A test and what became of it; `reason` says why it does not hold."""

    case: Case
    state: State
    reason: str = ""

    def as_json(self) -> JsonObject:
        """For scripts."""
        return {
            "name": self.case.name,
            "file": self.case.file,
            "line": self.case.line,
            "state": self.state.value,
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True)
class Report:
    """All tests that were asked for, in their order, and what they have been through of the rules."""

    outcomes: tuple[Outcome, ...]
    coverage: tuple[FileCoverage, ...]

    def count(self, state: State) -> int:
        """How many tests came to this."""
        return sum(outcome.state is state for outcome in self.outcomes)

    @property
    def holds(self) -> bool:
        """Whether no test failed. Where there was no time for some, the one that took it has."""
        return not self.count(State.FAILED)

    @property
    def percent(self) -> float:
        """Of the lines of all rules, those that a test has been through."""
        return total_percent(self.coverage)


def run_tests(folder: CheckedFolder, *, pattern: str = "", seconds: float) -> Report:
    """Evaluate the tests whose full name has a match of `pattern`, all of them in `seconds`.

    The folder is one that nothing is wrong with. Raises UsageError where there is no such test, or the pattern is none.
    """
    cases = _chosen(folder, pattern)
    rules = [case.name for case in cases if not case.is_todo]
    answers = list(evaluate([*folder.modules, *folder.tests], folder.data, rules, seconds=seconds))
    found = {answer.rule: answer for answer in answers}
    texts = {source.name: source.text.split("\n") for source in folder.tests}
    outcomes = [_outcome(case, found.get(case.name), texts[case.file]) for case in cases]
    return Report(tuple(outcomes), tuple(coverage_of(folder.modules, answers)))


def _chosen(folder: CheckedFolder, pattern: str) -> list[Case]:
    if not folder.cases:
        hint = f"write rules `{TEST}NAME if {{ ... }}` into a file such as {folder.path}/orchestrator_test.rego"
        raise UsageError(f"{folder.path} has no tests", hint=hint)
    try:
        wanted = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"--run: is no regular expression: {error}") from error
    cases = [case for case in folder.cases if wanted.search(case.name)]
    if not cases:
        raise UsageError(f"none of the tests of {folder.path} is called like `{pattern}`")
    return cases


def _outcome(case: Case, answer: Answer | None, text: Sequence[str]) -> Outcome:
    if case.is_todo:
        return Outcome(case, State.TODO)
    if answer is None:
        return Outcome(case, State.NOT_RUN, "there was no time left")
    if answer.error:
        return Outcome(case, State.FAILED, _said(answer.error))
    if answer.is_undefined:
        return Outcome(case, State.FAILED, f"is undefined{_stopped(case, answer, text)}")
    if answer.value is not True:
        return Outcome(case, State.FAILED, f"is not true but {json.dumps(answer.value, ensure_ascii=False)[:200]}")
    return Outcome(case, State.PASSED)


def _said(error: str) -> str:
    return problem_of(RuntimeError(error)).said if error.startswith("-->") else error


def _stopped(case: Case, answer: Answer, text: Sequence[str]) -> str:
    """The last of its lines that was looked at: mostly that which did not hold."""
    gone_through = answer.covered.get(case.file, ())
    if last := max((line for line in gone_through if case.line <= line <= case.last_line), default=0):
        return f"; looked at last, in line {last}: {text[last - 1].strip()[:120]}"
    return ""
