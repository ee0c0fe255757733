"""The sample policy's own tests notice whatever is turned round in its rules.

Each `not`, `in` and comparison of the rules is changed once, by tokens: `not` is left out, `in` and comparisons become
their opposite. Of each mutant one of the tests of `orchestrator_test.rego` must say that it is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from bench import ROOT

from orchestrator.policy.engines.rego_folder import PolicySource

FOLDER = ROOT / "workflows" / "policies"
TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|`[^`]*`|#[^\n]*|:=|==|!=|<=|>=|[<>]|[A-Za-z_][A-Za-z0-9_]*')
OPPOSITE = {"==": "!=", "!=": "==", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}

EQUIVALENT: dict[str, str] = {}
"""Mutants that no test can tell from the rules, and why."""


@dataclass(frozen=True)
class Mutant:
    """One module with one token changed."""

    name: str
    source: PolicySource


def mutants_of(source: PolicySource) -> Iterator[Mutant]:
    text, short = source.text, source.name.rpartition("/")[2]
    for match in TOKEN.finditer(text):
        for changed, words in _changed(text, match):
            line = text.count("\n", 0, match.start()) + 1
            column = match.start() - text.rfind("\n", 0, match.start())
            there = text.split("\n")[line - 1].strip()
            yield Mutant(f"{short}:{line}:{column} {words}: {there}", replace(source, text=changed))


def _changed(text: str, match: re.Match[str]) -> Iterator[tuple[str, str]]:
    token, before, after = match[0], text[: match.start()], text[match.end() :]
    if token == "not":
        yield before + after.removeprefix(" "), "without not"
    elif token in OPPOSITE:
        yield before + OPPOSITE[token] + after, f"{OPPOSITE[token]} for {token}"
    elif token == "in" and (member := _member(before)) is not None:
        yield before[:member] + "not " + before[member:] + token + after, "not in"


def _member(before: str) -> int | None:
    """Where the left side of an `in` begins, unless it is one of `some` or `every`, which only name what is there.

    After `not` nothing is put in: leaving out that `not` is the same.
    """
    line = before.rpartition("\n")[2]
    begin = max(line.rfind(word) + len(word) for word in ("\t", " if ", "{ ", "; "))
    left = line[begin:] if begin > 0 else line
    if re.match(r"(some|every|not)\b", left.strip()) or "| some " in left:
        return None
    return len(before) - len(left)
