"""What is wrong with a workflow file, and where: file, line, column, an excerpt, and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from orchestrator.errors import UsageError
from orchestrator.jsontypes import JsonObject


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One finding. `line` and `column` count from 1; `excerpt` is the line itself."""

    file: str
    line: int
    column: int
    message: str
    hint: str = ""
    severity: Literal["error", "warning"] = "error"
    excerpt: str = ""

    def render(self) -> str:
        """`file:line:column: error: message`, the line, a caret under the place, and the hint."""
        text = f"{self.file}:{self.line}:{self.column}: {self.severity}: {self.message}"
        if self.excerpt:
            number = f"{self.line:>5} | "
            indent = "".join("\t" if char == "\t" else " " for char in self.excerpt[: self.column - 1])
            text += f"\n{number}{self.excerpt}\n{' ' * (len(number) - 2)}| {indent}^"
        if self.hint:
            text += f"\n      = hint: {self.hint}"
        return text

    def as_json(self) -> JsonObject:
        """The same for scripts."""
        return {
            "file": self.file,
            "line": self.line,
            "column": self.column,
            "severity": self.severity,
            "message": self.message,
            "hint": self.hint,
        }


class InvalidWorkflow(UsageError):
    """A workflow file that cannot be run. `problems` holds everything that is wrong with it, in order."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems))
        count = len(self.problems)
        found = "\n".join(problem.render() for problem in self.problems)
        super().__init__(f"{found}\n{count} {'problem' if count == 1 else 'problems'} found; nothing was run")


def suggestion(word: str, known: Iterable[str], *, otherwise: str = "") -> str:
    """`did you mean `x`?` for the closest known word, else the list of them."""
    names = sorted(known)
    close = get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean `{close[0]}`?"
    return otherwise or (f"known here: {', '.join(names)}" if names else "")
