"""The tests of a folder: rules `test_*` in `*_test.rego`, of any package, as `opa test` has them.

Stricter than OPA: a test is one plain rule. Of two rules of a name one that holds would hide one that does not, and a
default would hold whatever is asked.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.policy.engines.rego.folder import PolicySource
from orchestrator.policy.engines.rego.modules import Rule
from orchestrator.policy.engines.rego.problems import PolicyProblem, problem_at

TEST = "test_"
TODO = "todo_test_"
"""A test that is known not to hold yet: it is counted, not evaluated."""


@dataclass(frozen=True, slots=True)
class Case:
    """One test: the rule's full name, its file, and its first and last line."""

    name: str
    file: str
    line: int
    last_line: int
    is_todo: bool


def cases_in(rules: Iterable[Rule], tests: Iterable[PolicySource]) -> tuple[list[Case], list[PolicyProblem]]:
    """The tests among the rules, in the order of their files, and what looks like one and is none."""
    texts = {source.name: source.text for source in tests}
    cases: dict[str, Case] = {}
    problems = []
    for rule in rules:
        if rule.file not in texts or not rule.head.startswith((TEST, TODO)):
            continue
        text = texts[rule.file]
        if not rule.is_plain:
            wrong = "is no test: a test is a rule without arguments, keys and default"
        elif rule.name in cases:
            first = cases[rule.name]
            wrong = f"is a second test of this name, after that in {first.file}:{first.line}"
        else:
            last_line = text.encode()[: rule.last].count(b"\n") + 1
            cases[rule.name] = Case(rule.name, rule.file, rule.line, last_line, rule.head.startswith(TODO))
            continue
        problems.append(problem_at(text, rule.file, rule.line, rule.column, f"`{rule.head}` {wrong}"))
    return list(cases.values()), problems
