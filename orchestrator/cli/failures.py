"""How an error reaches the person or the scheduler: words on standard error, an object for `--json`, an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cli.display.printable import clean, one_line
from orchestrator.cli.display.streams import write_nowhere
from orchestrator.errors import ExitCode, OrchestratorError

if TYPE_CHECKING:
    import typer

DEFECT = int(ExitCode.DEFECT)
"""The exit code of an error that nobody foresaw."""

_ONLY_HELP = "NoArgsIsHelpError"
"""What Typer raises where a command is missing, with the whole help as its message; it is in no public module."""


def say(message: str, hint: str | None = None) -> None:
    """`error: ...` and `hint: ...` on standard error."""
    sys.stderr.write(clean(f"error: {message}\n" + (f"hint: {hint}\n" if hint else "")))


def note(text: str) -> None:
    """`hint: ...` on standard error, for what is no error."""
    sys.stderr.write(f"hint: {one_line(text)}\n")


def expected(error: OrchestratorError, *, as_json: bool) -> int:
    """Report an error that was raised on purpose. What is wrong with a file begins with its place, as in compilers."""
    if shown := getattr(error, "shown", None):
        sys.stderr.write(clean(f"{shown}\n"))
    else:
        say(error.message, error.hint)
    if as_json:
        _object(type(error).__name__, error.message, error.hint, error.exit_code)
    return int(error.exit_code)


def misused(error: typer.TyperException, *, as_json: bool) -> int:
    """Report a command line that cannot be understood; of one without a command, what there is."""
    if type(error).__name__ == _ONLY_HELP:
        sys.stderr.write(error.format_message() + "\n")
        return int(ExitCode.INVALID)
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "orchestrator"
    message, hint = error.format_message(), f"see `{command} --help`"
    say(message, hint)
    if as_json:
        _object("UsageError", message, hint, ExitCode.INVALID)
    return int(ExitCode.INVALID)


def unexpected(error: BaseException, *, as_json: bool) -> int:
    """Report a defect: one line, and the traceback with ORCHESTRATOR_DEBUG=1; both without issued secrets."""
    from orchestrator.configured.services import redactor

    redact = redactor().redact
    text = " ".join(redact(str(error)).split())[:300]
    message = f"unexpected {type(error).__name__}{_place(error)}{': ' + text if text else ''}"
    if os.environ.get("ORCHESTRATOR_DEBUG") == "1":
        sys.stderr.write(clean(redact("".join(traceback.format_exception(error)))))
        hint = None
    else:
        hint = "this is a defect of the orchestrator; ORCHESTRATOR_DEBUG=1 shows where it comes from"
    say(message, hint)
    if as_json:
        _object("Defect", message, hint, DEFECT)
    return DEFECT


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


def _object(kind: str, message: str, hint: str | None, code: int) -> None:
    from orchestrator.cli.display.json_output import json_line

    error = {"kind": kind, "message": message, "hint": hint, "exit_code": int(code)}
    try:
        sys.stdout.write(json_line({"error": error}) + "\n")
        sys.stdout.flush()
    except OSError:  # it was said on the standard error, and the code says it
        write_nowhere(sys.stdout)
