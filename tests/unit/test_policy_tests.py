"""Tests of policies: what holds, what does not and why, and what becomes of a test that would never end."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from orchestrator.errors import UsageError
from orchestrator.policy.authoring.bounded import evaluate
from orchestrator.policy.authoring.checking import check_folder
from orchestrator.policy.authoring.coverage import FileCoverage, ranges, total_percent
from orchestrator.policy.authoring.starter import write_starter
from orchestrator.policy.authoring.testing import Outcome, Report, State, run_tests
from orchestrator.policy.engines.rego.folder import PolicySource

RULES = """package orchestrator

import rego.v1

default decision := {"allow": false}

decision := {"allow": true} if input.agent in data.agents
"""
HEAD = "package orchestrator_test\n\nimport rego.v1\n\n"
LONG = "count([x | some x in numbers.range(1, 100000); some y in numbers.range(1, 100000); x == y]) == 1"
LARGE = "count(numbers.range(1, 100000000)) == 1"


def report(folder: Path, tests: str, rules: str = RULES, pattern: str = "", seconds: float = 60) -> Report:
    (folder / "rules.rego").write_text(rules)
    (folder / "rules_test.rego").write_text(HEAD + tests)
    (folder / "data.json").write_text('{"agents": ["a"]}')
    checked = check_folder(folder, evaluated=False)
    assert checked.problems == ()
    return run_tests(checked, pattern=pattern, seconds=seconds)


def only(found: Report) -> Outcome:
    (outcome,) = found.outcomes
    return outcome


@pytest.mark.parametrize(
    "body",
    [
        "if true",
        ":= true",
        'if data.orchestrator.decision.allow with input.agent as "a"',
        'if not data.orchestrator.decision.allow with input.agent as "b"',
        'if data.orchestrator.decision.allow with input.agent as "b" with data.agents as ["b"]',
        'if data.agents == ["a"]',
        "if false else := true",
        "if input == {}",
    ],
)
def test_a_test_that_is_true_holds(tmp_path: Path, body: str) -> None:
    found = report(tmp_path, f"test_it {body}\n")
    assert only(found).state is State.PASSED, only(found).reason
    assert found.holds


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("if false", "is undefined; looked at last, in line 5: test_it if false"),
        ("if {\n\ttrue\n\tinput.a == 1\n\ttrue\n}", "is undefined; looked at last, in line 7: input.a == 1"),
        (":= false", "is not true but false"),
        (":= 1", "is not true but 1"),
        (':= "true"', 'is not true but "true"'),
        (":= null", "is not true but null"),
        ("if 1 / 0 == 1", "rules_test.rego:5:14: divide by zero"),
        ("if count(1) == 1", "rules_test.rego:5:18: `count` requires"),
        (":= 1 if true\n\nother := 2\n", "is not true but 1"),
    ],
)
def test_anything_else_does_not_and_says_why(tmp_path: Path, body: str, reason: str) -> None:
    found = report(tmp_path, f"test_it {body}\n")
    outcome = only(found)
    assert outcome.state is State.FAILED
    assert reason in outcome.reason
    assert (outcome.case.name, outcome.case.line) == ("data.orchestrator_test.test_it", 5)
    assert "backtrace" not in outcome.reason
    assert not found.holds


def test_an_error_in_the_rules_is_told_with_its_place_there(tmp_path: Path) -> None:
    found = report(tmp_path, "test_it if data.orchestrator.x == 1\n", RULES + "\nx := 1 if to_number(input.a.b)\n")
    assert only(found).state is State.FAILED  # undefined: there is no input
    found = report(tmp_path, "test_it if data.orchestrator.x == 1\n", RULES + '\nx := to_number("x")\n')
    assert f"{tmp_path}/rules.rego:9:17: could not parse" in only(found).reason


def test_no_test_sees_what_another_replaced(tmp_path: Path) -> None:
    tests = """test_a if data.agents == ["b"] with data.agents as ["b"]

test_b if {
	1 / 0 == 1 with data.agents as ["c"]
}

test_c if data.agents == ["a"]
"""
    states = [outcome.state for outcome in report(tmp_path, tests).outcomes]
    assert states == [State.PASSED, State.FAILED, State.PASSED]


def test_what_is_to_be_done_is_counted_and_not_evaluated(tmp_path: Path) -> None:
    found = report(tmp_path, "test_a if true\n\ntodo_test_b if 1 / 0 == 1\n")
    assert [outcome.state for outcome in found.outcomes] == [State.PASSED, State.TODO]
    assert found.holds


def test_tests_are_found_in_every_package_and_file(tmp_path: Path) -> None:
    (tmp_path / "more_test.rego").write_text(
        "package orchestrator\n\nimport rego.v1\n\ntest_own if decision.allow == false\n"
    )
    found = report(tmp_path, "test_a if true\n")
    assert [outcome.case.name for outcome in found.outcomes] == [
        "data.orchestrator.test_own",
        "data.orchestrator_test.test_a",
    ]
    assert found.holds


def test_packages_whose_names_are_no_words_are_tested_and_covered(tmp_path: Path) -> None:
    (tmp_path / "odd.rego").write_text('package a["b-c"].d\n\nx := 1\n\ny := 2\n')
    (tmp_path / "odd_test.rego").write_text(
        'package a["b-c"].d_test\n\nimport rego.v1\n\ntest_x if data.a["b-c"].d.x == 1\n'
    )
    found = report(tmp_path, "test_a if true\n")
    assert found.holds, found.outcomes
    assert [(file.covered, file.missed) for file in found.coverage if file.file.endswith("odd.rego")] == [((3,), (5,))]


def test_tests_are_chosen_by_their_full_name(tmp_path: Path) -> None:
    tests = "test_a if true\n\ntest_b if false\n\ntest_ab if true\n"
    assert len(report(tmp_path, tests, pattern="orchestrator_test").outcomes) == 3
    assert [outcome.case.line for outcome in report(tmp_path, tests, pattern="_a").outcomes] == [5, 9]
    assert [outcome.case.line for outcome in report(tmp_path, tests, pattern="test_a$").outcomes] == [5]
    with pytest.raises(UsageError, match="none of the tests"):
        report(tmp_path, tests, pattern="nothing")
    with pytest.raises(UsageError, match="no regular expression"):
        report(tmp_path, tests, pattern="(")


def test_a_folder_without_tests_is_an_error_that_says_how_to_write_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no tests") as caught:
        report(tmp_path, "helper if true\n")
    assert "test_NAME if" in str(caught.value.hint)


def test_a_test_that_would_never_end_is_ended_and_named(tmp_path: Path) -> None:
    tests = f"test_a if true\n\ntest_b if {LONG}\n\ntest_c if true\n"
    found = report(tmp_path, tests, seconds=1)
    assert [outcome.state for outcome in found.outcomes] == [State.PASSED, State.FAILED, State.NOT_RUN]
    assert "no answer yet after 1 s" in found.outcomes[1].reason
    assert not found.holds


def test_a_test_that_needs_too_much_memory_fails_alone(tmp_path: Path) -> None:
    found = report(tmp_path, f"test_a if true\n\ntest_b if {LARGE}\n\ntest_c if true\n")
    assert [outcome.state for outcome in found.outcomes] == [State.PASSED, State.FAILED, State.PASSED]
    assert "the evaluator died of it (SIGABRT)" in found.outcomes[1].reason


def test_each_answer_has_the_lines_of_its_own_rule_only() -> None:
    module = PolicySource("a.rego", "package a\n\na := 1\n\nb := 2\n")
    answers = list(evaluate([module], None, ["data.a.a", "data.a.b", "data.a.c"], seconds=60))
    assert [(answer.value, answer.covered) for answer in answers[:2]] == [(1, {"a.rego": [3]}), (2, {"a.rego": [5]})]
    assert "not a valid rule path" in answers[2].error


def test_nothing_of_the_evaluator_is_left_when_nobody_waits_for_it_any_more() -> None:
    module = PolicySource("a.rego", f"package a\n\na := true\n\nb if {LONG}\n")
    answers = evaluate([module], None, ["data.a.a", "data.a.b"], seconds=60)
    assert next(answers).value is True
    began = threading.active_count(), time.monotonic()
    answers.close()
    assert threading.active_count() == began[0]
    assert _children() == []


def _children() -> list[str]:
    """The evaluators that this process has."""
    children = Path("/proc/self/task").glob("*/children")
    pids = [pid for file in children for pid in file.read_text().split()]
    return [pid for pid in pids if b"authoring/child.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]


COVERED = """# A comment.
package orchestrator

import rego.v1

default decision := {
	"allow": false,
}

decision := {"allow": true} if {
	input.a == 1
	input.b == 2
	input.c == 3
}

limit := 5

helper(x) if {
	x > 1
	x < 9
}

unused(x) := 3 if x

short if input.z

either := 1 if {
	input.a == 7
} else := 2 if {
	input.a == 1
}

long := [x |
	some x in [
		1,
		2,
	]
	x > limit
]
"""


@pytest.mark.parametrize(
    ("test", "covered", "missed"),
    [
        ("true", [], [6, 7, 10, 11, 12, 13, 16, 19, 20, 23, 25, 27, 28, 30, 34, 35, 36, 38]),
        ("data.orchestrator.limit == 5", [16], None),
        ("not data.orchestrator.short", [25], None),
        ("data.orchestrator.helper(3)", [19, 20], None),
        ("not data.orchestrator.helper(0)", [19], None),
        ("not data.orchestrator.decision.allow", [6, 7, 11], None),
        ('not data.orchestrator.decision.allow with input as {"a": 1}', [6, 7, 11, 12], None),
        ('data.orchestrator.decision.allow with input as {"a": 1, "b": 2, "c": 3}', [6, 7, 10, 11, 12, 13], None),
        ("data.orchestrator.either == 2 with input.a as 1", [28, 30], None),
        ("data.orchestrator.either == 1 with input.a as 7", [27, 28], None),
        ("data.orchestrator.long == []", [16, 34, 35, 36, 38], None),
    ],
)
def test_a_line_is_covered_when_an_expression_on_it_was_looked_at(
    tmp_path: Path, test: str, covered: list[int], missed: list[int] | None
) -> None:
    found = report(tmp_path, f"test_it if {test}\n", COVERED)
    assert found.holds, found.outcomes
    (of_rules,) = found.coverage
    assert list(of_rules.covered) == covered
    assert missed is None or list(of_rules.missed) == missed
    assert len(of_rules.covered) + len(of_rules.missed) == 18
    assert found.percent == 100 * len(covered) / 18


def test_files_that_no_test_comes_to_count_as_well(tmp_path: Path) -> None:
    (tmp_path / "more.rego").write_text("package lib.deep\n\nf(x) := y if {\n\ty := x\n}")
    (tmp_path / "nothing.rego").write_text("# Only a comment.\npackage orchestrator\n")
    found = report(tmp_path, "test_it if data.orchestrator.limit == 5\n", COVERED)
    counted = {Path(file.file).name: (file.covered, file.missed) for file in found.coverage}
    assert counted["more.rego"] == ((), (3, 4))
    assert counted["nothing.rego"] == ((), ())
    assert found.percent == 100 / 20


def test_what_several_tests_go_through_is_taken_together(tmp_path: Path) -> None:
    tests = "test_a if data.orchestrator.limit == 5\n\ntest_b if data.orchestrator.helper(3)\n"
    assert report(tmp_path, tests, COVERED).coverage[0].covered == (16, 19, 20)


def test_tests_that_fail_have_been_through_lines_too(tmp_path: Path) -> None:
    found = report(tmp_path, "test_a if data.orchestrator.limit == 6\n", COVERED)
    assert found.coverage[0].covered == (16,)


def test_a_long_file_weighs_more_than_a_short_one() -> None:
    short = FileCoverage("a", (), (1,))
    long = FileCoverage("b", (1, 2, 3), ())
    assert total_percent([short, long]) == 75
    assert total_percent([]) == FileCoverage("c", (), ()).percent == 100


def test_lines_are_told_in_ranges() -> None:
    assert ranges([1, 2, 3, 5, 7, 8]) == "1-3, 5, 7-8"
    assert ranges([]) == ""


def test_the_starter_holds_and_is_covered(tmp_path: Path) -> None:
    write_starter(tmp_path)
    found = run_tests(check_folder(tmp_path), seconds=60)
    assert found.holds, found.outcomes
    assert found.percent >= 95
