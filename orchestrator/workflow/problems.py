"""What is wrong with a workflow file, and where: file, line, column, an excerpt, and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Literal

from orchestrator.errors import UsageError
from orchestrator.jsontypes import JsonObject, counted


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One finding. `line` and `column` count from 1; `excerpt` is the line itself, or its part from `cut` on."""

    file: str
    line: int
    column: int
    message: str
    hint: str = ""
    severity: Literal["error", "warning"] = "error"
    excerpt: str = field(default="", repr=False)
    cut: int = 0

    def said(self) -> str:
        """`file:line:column: error: message` and the hint, without any line of the file: what a log may hold."""
        text = f"{self.file}:{self.line}:{self.column}: {self.severity}: {self.message}"
        return f"{text}\n      = hint: {self.hint}" if self.hint else text

    def render(self) -> str:
        """`file:line:column: error: message`, the line, a caret under the place, and the hint."""
        text = f"{self.file}:{self.line}:{self.column}: {self.severity}: {self.message}"
        if self.excerpt:
            number = f"{self.line:>5} | "
            indent = "".join("\t" if char == "\t" else " " for char in self.excerpt[: self.column - 1 - self.cut])
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


MAX_PROBLEMS = 100
"""Of one file: who finds so many wrong stops looking."""


class InvalidWorkflow(UsageError):
    """A workflow file that cannot be run. `problems` holds what is wrong with it, in order.

    The message has no line of the file: it may reach the log of a service. `shown` has them, for who named the file.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems)[:MAX_PROBLEMS])
        self._end = f"{counted(len(self.problems), 'problem')} found; nothing was run"
        super().__init__("\n".join((*(problem.said() for problem in self.problems), self._end)))

    @property
    def shown(self) -> str:
        """The problems with the lines of the file that they are in."""
        return "\n".join((*(problem.render() for problem in self.problems), self._end))

    @property
    def places(self) -> str:
        """Where the problems are, and nothing of what is there."""
        first = self.problems[0]
        return f"{first.file}:{first.line}:{first.column}: {self._end.partition(';')[0]}"


_MOST_NAMES = 200
"""More are not compared with a word: that takes a millisecond for a hundred of them."""


def suggestion(word: str, known: Iterable[str], *, otherwise: str = "") -> str:
    """`did you mean `x`?` for the closest known word, else the list of them."""
    names = sorted(known)
    if len(names) > _MOST_NAMES:
        names = [name for name in names if name[:3] == word[:3]][:_MOST_NAMES]
    close = get_close_matches(word[:100], names, n=1, cutoff=0.6)
    if close:
        return f"did you mean `{close[0]}`?"
    return otherwise or (f"known here: {', '.join(names)}" if names else "")
