"""Which lines of rules tests have been through.

A line counts if there is an expression on it that Rego evaluates: comments, `package`, `import`, closing brackets, and
a head without a value (`allowed if {`) do not. It is covered once a test made the evaluator look at an expression on
it, whether that held or not: the first condition of a rule is covered when the rule is asked for, the second when the
first held, and a head with a value (`x := 5 if {`) when the whole body did. So a line that is covered has been gone
through, not proven.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.jsontypes import JsonObject
from orchestrator.policy.authoring.bounded import Answer
from orchestrator.policy.authoring.child import path_of
from orchestrator.policy.engines.rego.folder import PolicySource

_PROBE = "orchestrator_probe"


@dataclass(frozen=True, slots=True)
class FileCoverage:
    """The lines of one file, counted from 1, in order."""

    file: str
    covered: tuple[int, ...]
    missed: tuple[int, ...]

    @property
    def lines(self) -> int:
        """How many lines count."""
        return len(self.covered) + len(self.missed)

    @property
    def percent(self) -> float:
        """100 where there is no line that counts."""
        return percent(len(self.covered), self.lines)

    def as_json(self) -> JsonObject:
        """For scripts."""
        return {
            "file": self.file,
            "covered": list(self.covered),
            "missed": list(self.missed),
            "percent": round(self.percent, 2),
        }


def coverage_of(modules: Sequence[PolicySource], answers: Sequence[Answer]) -> list[FileCoverage]:
    """What the answers of all tests together have been through, of modules that nothing is wrong with."""
    found = []
    for file, counting in _counting_lines(modules).items():
        gone_through = {line for answer in answers for line in answer.covered.get(file, ())}
        found.append(FileCoverage(file, tuple(sorted(counting & gone_through)), tuple(sorted(counting - gone_through))))
    return found


def _counting_lines(modules: Sequence[PolicySource]) -> dict[str, set[int]]:
    """The lines of each module that can be covered.

    regorus tells the lines of those modules only of which it has evaluated something: so each gets a rule at its end,
    and that one is asked for.
    """
    import regorus

    engine = regorus.Engine()
    for number, source in enumerate(modules):
        engine.add_policy(source.name, f"{source.text}\n{_PROBE}_{number} := true\n")
    packages = engine.get_packages()
    engine.set_enable_coverage(True)
    for number, package in enumerate(packages):
        engine.eval_rule(path_of(f"{package}.{_PROBE}_{number}"))
    reported = {file["path"]: file for file in json.loads(engine.get_coverage_report_as_json())["files"]}
    return {
        source.name: {
            line
            for line in (*reported[source.name]["covered"], *reported[source.name]["not_covered"])
            if line <= source.text.count("\n") + 1
        }
        for source in modules
    }


def total_percent(files: Sequence[FileCoverage]) -> float:
    """Of all files together: a long file weighs more than a short one."""
    return percent(sum(len(file.covered) for file in files), sum(file.lines for file in files))


def percent(part: int, whole: int) -> float:
    """0 to 100."""
    return 100 * part / whole if whole else 100.0


def ranges(lines: Sequence[int]) -> str:
    """`3, 7-9`."""
    parts: list[list[int]] = []
    for line in lines:
        if parts and parts[-1][-1] == line - 1:
            parts[-1] = [parts[-1][0], line]
        else:
            parts.append([line])
    return ", ".join("-".join(map(str, part)) for part in parts)
