"""The sample policy's own tests notice whatever is turned round in its rules.

Each `not`, `in` and comparison of the rules is changed once, by tokens: `not` is left out, `in` and comparisons become
their opposite. Of each mutant one of the tests in Rego must say that it is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from bench import ROOT

from orchestrator.policy.authoring.checking import check_folder
from orchestrator.policy.authoring.child import Evaluator
from orchestrator.policy.engines.rego.folder import PolicySource

SAMPLE = check_folder(ROOT / "workflows" / "policies")
assert SAMPLE.data is not None
DATA = SAMPLE.data.text
TESTS = [case.name for case in SAMPLE.cases]
"""In the order in which they are asked: what has noticed one mutant is likely to notice the next one."""

TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|`[^`]*`|#[^\n]*|:=|==|!=|<=|>=|[<>]|[A-Za-z_][A-Za-z0-9_]*')
OPPOSITE = {"==": "!=", "!=": "==", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}

EQUIVALENT: dict[str, str] = {}
"""Mutants that no test can tell from the rules, and why."""


@dataclass(frozen=True)
class Mutant:
    """A module with one token changed."""

    name: str
    source: PolicySource


def mutants_of(source: PolicySource) -> Iterator[Mutant]:
    text, file = source.text, source.name.rpartition("/")[2]
    for match in TOKEN.finditer(text):
        if changed := _changed(text, match):
            line, column = text.count("\n", 0, match.start()) + 1, match.start() - text.rfind("\n", 0, match.start())
            there = text.split("\n")[line - 1].strip()
            yield Mutant(f"{file}:{line}:{column} {match[0]}: {there}", replace(source, text=changed))


def _changed(text: str, match: re.Match[str]) -> str:
    token, before, after = match[0], text[: match.start()], text[match.end() :]
    if token == "not":
        return before + after.removeprefix(" ")
    if token in OPPOSITE:
        return before + OPPOSITE[token] + after
    if token == "in" and (left := _left_side(before)):
        return f"{before.removesuffix(left)}not {left}in{after}"
    return ""


def _left_side(before: str) -> str:
    """What stands before an `in` in its expression. None for `some` and `every`, which give names to what is there,
    and none after `not`: leaving that out is the same."""
    expression = re.split(r"^\s*|\bif |\{ |; |\| ", before.rpartition("\n")[2])[-1]
    return "" if re.match(r"(some|every|not)\b", expression) else expression


RULES = {source.name: source for source in SAMPLE.modules}
MUTANTS = {mutant.name: mutant for source in SAMPLE.modules for mutant in mutants_of(source)}


def is_noticed(mutant: Mutant) -> bool:
    """Whether a test is not true any more. Raises RuntimeError where the mutant is no Rego."""
    sources = {**RULES, mutant.source.name: mutant.source}
    modules = [(source.name, source.text) for source in (*sources.values(), *SAMPLE.tests)]
    evaluator = Evaluator(modules, DATA)
    for test in TESTS:
        if evaluator.evaluate(test).get("value") is not True:
            TESTS.remove(test)
            TESTS.insert(0, test)
            return True
    return False


def test_the_rules_as_they_are_hold() -> None:
    assert not is_noticed(Mutant("", SAMPLE.modules[0]))


@pytest.mark.parametrize("name", MUTANTS)
def test_what_is_turned_round_is_noticed(name: str) -> None:
    assert is_noticed(MUTANTS[name]) != (name in EQUIVALENT), EQUIVALENT.get(name, "no test notices")


def test_every_kind_of_token_is_turned_round() -> None:
    """And each of the mutants that are excused is one of them."""
    tokens = {name.split(":")[2].split(" ")[1] for name in MUTANTS}
    assert tokens >= {"not", "in", "==", ">", "<="}
    assert len(MUTANTS) > 80
    assert set(EQUIVALENT) <= set(MUTANTS)


@pytest.mark.parametrize(
    ("text", "mutants"),
    [
        ("a if not b", ["a if b"]),
        ("a if x in y", ["a if not x in y"]),
        ("a if not x in y", ["a if x in y"]),
        ("a if {\n\tx.z in y\n}", ["a if {\n\tnot x.z in y\n}"]),
        ("a := [x | x in y; z]", ["a := [x | not x in y; z]"]),
        ("a := {x | some x in y}", []),
        ("\tevery x in y {", []),
        ("a if b >= 1", ["a if b < 1"]),
        ("a if count(b) > 0", ["a if count(b) <= 0"]),
        ("a if b == 1", ["a if b != 1"]),
        ('a := "b == c not d in e" # not ==', []),
        ("a := `not ==`", []),
        ("notable := inner", []),
    ],
)
def test_mutants_are_made_by_tokens(text: str, mutants: list[str]) -> None:
    assert [mutant.source.text for mutant in mutants_of(PolicySource("p.rego", text))] == mutants
