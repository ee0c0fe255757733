"""What `policy check` finds: everything that can be known before a question is asked, in one go, with its place."""

from __future__ import annotations

from pathlib import Path

import pytest
import test_rego_engines as engines
from bench import ROOT

from orchestrator.errors import UsageError
from orchestrator.policy.authoring.checking import MOST_PROBLEMS, check_folder
from orchestrator.policy.authoring.starter import write_starter

HEAD = "package orchestrator\n\nimport rego.v1\n\n"
VALID = f'{HEAD}decision := {{"allow": false}}\n'


def written(folder: Path, **texts: str) -> Path:
    for name, text in texts.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def found(folder: Path) -> list[str]:
    """What is wrong, with the names of files instead of their paths."""
    return [problem.said.replace(f"{folder}/", "") for problem in check_folder(folder).problems]


@pytest.mark.parametrize("folder", ["workflows/policies"])
def test_our_own_policies_are_valid(folder: str) -> None:
    checked = check_folder(ROOT / folder)
    assert checked.problems == ()
    assert len(checked.cases) > 40


def test_the_starter_is_valid(tmp_path: Path) -> None:
    write_starter(tmp_path)
    assert found(tmp_path) == []


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, case in engines.CASES.items()
        if not isinstance(case.expected, engines.Wrong) and name not in ("version 0", "version 0 in version 1")
    ],
)
def test_what_can_be_evaluated_is_valid(tmp_path: Path, name: str) -> None:
    """No check may find fault with a rule that gives an answer. An error on an empty question is one of the engine."""
    for file, text in engines.CASES[name].modules():
        (tmp_path / file).write_text(text)
    checked = check_folder(tmp_path, evaluated=False)
    assert [problem.shown for problem in checked.problems] == []


def test_everything_is_told_in_one_go_in_the_order_of_the_places(tmp_path: Path) -> None:
    rules = f"""{HEAD}decision := {{"allow": oops}}

first if nowhere == 1

second contains sprintf("%v", [misspelt])

third if cuont(input.a) == 1

fourth if first
"""
    test = "package orchestrator_test\n\nimport rego.v1\n\ntest_a if neither\n\ntest_b if print(1)\n"
    data = '{"a": 1,\n"a": NaN, "orchestrator_test": 1}'
    written(tmp_path, a__rego=rules, a_test__rego=test, data__json=data, b__yaml="a: 1")
    assert found(tmp_path) == [
        "a.rego:5:23: the variable `oops` comes from nowhere",
        "a.rego:7:10: use of undefined variable `nowhere` is unsafe",
        "a.rego:9:32: the variable `misspelt` comes from nowhere",
        "a.rego:11:15: there is no function `cuont`",
        "a_test.rego:5:11: use of undefined variable `neither` is unsafe",
        "a_test.rego:7:16: `print` writes to standard error what may be confidential, and no policy may use it",
        "b.yaml: is not read: the data of policies are in `data.json`, and OPA would take this file for data, too",
        'data.json:2:1: the key "a" is there twice, and readers differ in which one counts',
        "data.json:2:6: NaN is no JSON",
        "data.json:2:11: `data.orchestrator_test` is a package of the rules; "
        "data with its name would be mixed with them",
    ]


@pytest.mark.parametrize(
    "rule",
    [
        "x := [k | some k; input.l[k]]",
        "x := {k | some k; walk(input, [k, _])}",
        "x := [v | walk(input, [_, v])]",
        "x contains v if walk(input, [_, v])",
        'x := y if split(input.a, ".", y)',
        "x := {k: v | some k, v in input.l}",
        "x := [y | [y, _] = input.l]",
        "x := [y | y := input.l[i]; i > 2]",
        "x := [y | some y in input.l; every z in y { z > 1 }]",
        "x[k] := v if some k, v in input.l",
        'f(a, [b], {"k": c}) := [a, b, c]',
        "x := y.z if y := input.l",
        "x := 1 if input.l else := y if y := input.m",
        "import data.other as there\n\nx := there.y",
        "import data.there\n\nx := there.y",
        "import input.l as list\n\nx := list[0]",
        "x := [count(y) | some y in input.l]",
        "x := _y if _y := input.l",
    ],
)
def test_variables_that_are_given_a_value_come_from_somewhere(tmp_path: Path, rule: str) -> None:
    written(tmp_path, a__rego=VALID, b__rego=f"package lib\n\nimport rego.v1\n\n{rule}\n")
    assert found(tmp_path) == []


@pytest.mark.parametrize(
    "rule",
    [
        "x := who",
        "x := [y | y := who]",
        "x := [who | y := 1]",
        "x := input.l[y].z + who if y := 1",
        'x contains {"k": who} if input.l',
        "f(a) := [a, who]",
        "x := 1 if input.l else := who",
        "x := [y | some y in who]",
    ],
)
def test_variables_that_are_not_do_not(tmp_path: Path, rule: str) -> None:
    written(tmp_path, a__rego=VALID, b__rego=f"package lib\n\nimport rego.v1\n\n{rule}\n")
    column = rule.index("who") + 1
    (problem,) = found(tmp_path)
    assert problem.startswith(f"b.rego:5:{column}: ")
    assert "variable `who`" in problem


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": "\\ud800"}', "data.json:1:14: unexpected end of hex escape"),
        ('{"a": ' + "[" * 200 + "]" * 200 + "}", "data.json:1:133: recursion limit exceeded"),
    ],
)
def test_what_the_evaluator_has_against_data_is_told_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    written(tmp_path, a__rego=VALID, data__json=text)
    assert found(tmp_path) == [said]


def test_each_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    written(tmp_path, a__rego="package a\nx := {\n", b__rego=f"{HEAD}x := (\n", c_test__rego="package\n")
    (tmp_path / "d.rego").write_bytes(b"\xff")
    (tmp_path / "e.rego").symlink_to("nowhere")
    (tmp_path / "data.json").write_text("[]")
    told = found(tmp_path)
    assert [problem.partition(":")[0] for problem in told] == [
        "a.rego",
        "b.rego",
        "c_test.rego",
        "d.rego",
        "data.json",
        "e.rego",
    ]
    assert told[0].startswith("a.rego:3:1: ")
    assert told[5] == "e.rego: cannot be read as UTF-8 text: a link to nowhere"


def test_rules_that_use_a_wrong_one_are_not_said_to_be_wrong(tmp_path: Path) -> None:
    written(tmp_path, a__rego=f"{VALID}\na if who == 1\n\nb if a\n\nc := a\n\nd if what == 2\n")
    assert [problem.partition(": ")[0] for problem in found(tmp_path)] == ["a.rego:7:6", "a.rego:13:6"]


def test_wrong_rules_of_packages_whose_names_are_no_words_are_told(tmp_path: Path) -> None:
    written(tmp_path, a__rego=VALID, b__rego='package a["b-c"]\n\nimport rego.v1\n\na if who == 1\n\nb if a\n')
    assert found(tmp_path) == ["b.rego:5:6: use of undefined variable `who` is unsafe"]


def test_a_file_that_is_not_read_makes_nothing_else_wrong(tmp_path: Path) -> None:
    written(tmp_path, a__rego=f"{VALID}\na if helper(input)\n", b__rego=f"{HEAD}helper(x) if {{\n")
    assert len(found(tmp_path)) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("package other\nx := 1\n", "no policy defines data.orchestrator.decision"),
        (f"{HEAD}default decision := 1\n\ndefault decision := 2\n", "a.rego:7:1: `data.orchestrator.decision` has a"),
        (f"{VALID}\nf(x) := g(x)\n\ng(x) := f(x)\n", "a.rego:7:1: the function `data.orchestrator.f` calls itself"),
        (f"{VALID}\nx := time.now_ns()\n", "a.rego:7:17: `time.now_ns` gives another answer"),
        (f'{HEAD}decision := 1 if true\n\ndecision := "a" if true\n', "a.rego:7:1: rule conflicts"),
        (f"{VALID}x := {' ' * 2000}1\n", "a.rego:"),
        (f"{VALID}{chr(10) * 30_000}", "a.rego: the policy is not valid: "),
    ],
)
def test_what_an_engine_would_not_start_with_is_found(tmp_path: Path, text: str, said: str) -> None:
    written(tmp_path, a__rego=text)
    assert found(tmp_path)[0].startswith(said)


def test_a_problem_has_an_excerpt_and_says_what_to_do(tmp_path: Path) -> None:
    written(tmp_path, a__rego=f"{VALID}\n\tx := time.now_ns()\n")
    (problem,) = check_folder(tmp_path).problems
    assert problem.shown.endswith("  |\n7 | \tx := time.now_ns()\n  | \t                  ^")
    assert "input.time" in problem.hint


@pytest.mark.parametrize(
    ("rule", "wrong"),
    [
        ("test_a(x) if x", True),
        ("test_a contains 1", True),
        ("test_a[x] := 1 if some x in [1]", True),
        ("default test_a := true", True),
        ("test_a if true\n\ntest_a if false", True),
        ("test_a := true", False),
        ("test_a if true else := false", False),
        ("todo_test_a if false", False),
        ("testing(x) if x", False),
        ("helper contains 1", False),
    ],
)
def test_a_test_is_one_plain_rule(tmp_path: Path, rule: str, wrong: bool) -> None:
    written(tmp_path, a__rego=VALID, a_test__rego=f"package t\n\nimport rego.v1\n\n{rule}\n")
    told = found(tmp_path)
    assert bool(told) is wrong
    assert all("test" in problem for problem in told)


def test_rules_like_tests_in_the_policies_themselves_are_none(tmp_path: Path) -> None:
    written(tmp_path, a__rego=f"{VALID}\ntest_a(x) if x\n")
    assert found(tmp_path) == []
    assert check_folder(tmp_path).cases == ()


def test_who_finds_too_much_stops(tmp_path: Path) -> None:
    written(tmp_path, a__rego=VALID, data__json='{"a": [' + "NaN, " * 5000 + "NaN]}")
    assert len(found(tmp_path)) == MOST_PROBLEMS


@pytest.mark.parametrize("kind", ["nowhere", "a file", "empty", "only tests", "unreadable"])
def test_what_is_no_folder_of_policies_is_a_usage_error(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "policies"
    if kind == "a file":
        path.write_text("")
    elif kind != "nowhere":
        path.mkdir()
    if kind == "only tests":
        (path / "a_test.rego").write_text("package t\n")
    with pytest.raises(UsageError, match=r"is not a folder|has no policy in it"):
        check_folder(path)
