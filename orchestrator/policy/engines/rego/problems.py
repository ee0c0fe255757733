"""What is wrong with a policy, and where: file, line, column, an excerpt, and what to do.

regorus writes `--> file:line:column`, an excerpt and `error: ...`; people, and their editors, expect the place first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from orchestrator.errors import UsageError
from orchestrator.jsontypes import JsonObject

_POSITION = re.compile(r"^-->\s*(?P<file>.+):(?P<line>\d+):(?P<column>\d+)\s*$", re.MULTILINE)
_WIDEST = 160
"""Columns of an excerpt: data may be one line of a megabyte."""


@dataclass(frozen=True, slots=True, order=True)
class PolicyProblem:
    """One finding. `line` and `column` count from 1; they are 0 where it is about a whole file."""

    file: str
    line: int
    column: int
    message: str
    hint: str = field(default="", compare=False)
    excerpt: str = field(default="", compare=False, repr=False)

    @property
    def place(self) -> str:
        """`file:line:column`, or what of it is known."""
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file

    @property
    def said(self) -> str:
        """`file:line:column: message`, in one line."""
        return f"{self.place}: {self.message}" if self.file else self.message

    @property
    def shown(self) -> str:
        """The same, and the line that it is about with a caret under the place."""
        return f"{self.said}\n{self.excerpt}" if self.excerpt else self.said

    def as_json(self) -> JsonObject:
        """The same for scripts."""
        return {
            "file": self.file,
            "line": self.line,
            "column": self.column,
            "message": self.message,
            "hint": self.hint,
        }


class InvalidPolicy(UsageError):
    """A folder of policies that cannot be decided by. `problem` is the first that was found."""

    def __init__(self, problem: PolicyProblem) -> None:
        super().__init__(problem.shown, hint=problem.hint or None)
        self.problem = problem


def problem_at(text: str, file: str, line: int, column: int, message: str, hint: str = "") -> PolicyProblem:
    """A problem at a place of a file's text, with its excerpt."""
    lines = text.split("\n")
    there = lines[line - 1].rstrip("\r") if line <= len(lines) else ""
    cut = max(0, column - _WIDEST // 2) if len(there) > _WIDEST else 0
    shown = there[cut : cut + _WIDEST]
    indent = "".join("\t" if char == "\t" else " " for char in shown[: column - 1 - cut])
    margin = " " * len(str(line))
    return PolicyProblem(file, line, column, message, hint, f"{margin} |\n{line} | {shown}\n{margin} | {indent}^")


def problem_of(error: Exception, hint: str = "") -> PolicyProblem:
    """What an error of regorus says. Its first place is the one: others are of what led there."""
    text = without_backtrace(error)
    position = _POSITION.search(text)
    if position is None:
        return PolicyProblem("", 0, 0, f"the policy is not valid: {text}", hint)
    excerpt, _, message = text[position.end() :].strip("\n").partition("\nerror:")
    line, column = int(position["line"]), int(position["column"])
    return PolicyProblem(position["file"], line, column, message.strip() or "not valid", hint, excerpt)


def reason_of(error: Exception) -> str:
    """The place and the message in one line; not the words of an error that would quote the whole question."""
    if isinstance(error, UnicodeError):
        return "the question holds a text that is not Unicode (half of a surrogate pair)"
    text = without_backtrace(error)
    said = problem_of(error).said if _POSITION.search(text) else text
    return said.splitlines()[0] if said else type(error).__name__


def without_backtrace(error: Exception) -> str:
    """What regorus says, without the addresses of its machine code."""
    return str(error).partition("Stack backtrace:")[0].strip()
