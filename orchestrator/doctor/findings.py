"""What was found, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from orchestrator.errors import ExitCode, OrchestratorError
from orchestrator.jsontypes import JsonObject


class Mark(StrEnum):
    """How a finding is to be taken."""

    FINE = "fine"
    WARNING = "warning"
    FAULT = "fault"
    NOT_SEEN = "not looked at"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `area` is what was looked at, `advice` what to do next; neither holds a secret.

    `code` is what the command answers for a fault.
    """

    area: str
    mark: Mark
    found: str
    advice: str = ""
    code: ExitCode = ExitCode.STEP_FAILED

    def as_json(self) -> JsonObject:
        """The same for scripts."""
        return {"area": self.area, "mark": self.mark.value, "found": self.found, "advice": self.advice}


def fine(area: str, found: str) -> Finding:
    """What is as it should be."""
    return Finding(area, Mark.FINE, found)


def warning(area: str, found: str, advice: str) -> Finding:
    """What works, and should be known."""
    return Finding(area, Mark.WARNING, found, advice)


def fault(area: str, found: str, advice: str, code: ExitCode = ExitCode.STEP_FAILED) -> Finding:
    """What a run would fail of, or what makes it less safe than it should be."""
    return Finding(area, Mark.FAULT, found, advice, code)


def not_seen(area: str, found: str, advice: str = "") -> Finding:
    """What could not be looked at from here."""
    return Finding(area, Mark.NOT_SEEN, found, advice)


def fault_of(area: str, error: OrchestratorError) -> Finding:
    """An error of ours, which says itself what to do."""
    return fault(area, error.message, error.hint or "", error.exit_code)


def exit_code(found: Iterable[Finding], *, strict: bool) -> ExitCode:
    """That of the first fault; with `strict` a warning counts as one."""
    marks: Sequence[Finding] = tuple(found)
    for each in marks:
        if each.mark is Mark.FAULT:
            return each.code
    if strict and any(each.mark is Mark.WARNING for each in marks):
        return ExitCode.STEP_FAILED
    return ExitCode.DONE
