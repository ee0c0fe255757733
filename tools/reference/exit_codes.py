"""The exit codes, and the errors that end with each of them."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator import errors
from orchestrator.errors import ExitCode, OrchestratorError
from tools.reference.docstrings import attributes, summary
from tools.reference.markdown import code, page, prose, table

_HEAD = """\
# Exit codes

What `orchestrator` answers to its scheduler. Where several things went wrong the code is that of the run's outcome;
6 only stands where the work itself was done. With `--json` errors are JSON, with the same code.
"""


def text() -> str:
    """The page."""
    rows = [(str(int(each)), each.name, prose(attributes(ExitCode).get(each.name, ""))) for each in ExitCode]
    kinds = [
        (code(each.__name__), str(int(each.exit_code)), prose(summary(each).split("\n\n")[0]))
        for each in sorted(set(_errors(OrchestratorError)), key=lambda each: (int(each.exit_code), each.__name__))
        if each.__module__ == errors.__name__
    ]
    return page(
        _HEAD,
        table(("code", "name", "meaning"), rows),
        "## Errors",
        "The classes of `orchestrator.errors`, which entry points raise, with the code that each ends a command with.",
        table(("class", "code", "meaning"), kinds),
    )


def _errors(base: type[OrchestratorError]) -> Iterator[type[OrchestratorError]]:
    yield base
    for each in base.__subclasses__():
        yield from _errors(each)
