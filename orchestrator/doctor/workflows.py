"""The workflow files: valid, each with a name of its own, and with every endpoint that they name."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from orchestrator.actions.catalog import catalog
from orchestrator.doctor.findings import Finding, fault, fine
from orchestrator.errors import ExitCode, UsageError
from orchestrator.planning.readiness import lacking, none_for_certain
from orchestrator.workflow.loader import LoadedWorkflow, files_of, load_each, of_one_name, unreadable
from orchestrator.workflow.problems import Problem

AREA = "workflows"


def read(given: Iterable[Path]) -> tuple[list[LoadedWorkflow], list[Finding]]:
    """The valid workflows among files and folders, and what is wrong with the others."""
    loaded: list[LoadedWorkflow] = []
    problems: list[Problem] = []
    for path in given:
        try:
            files: Sequence[Path] = files_of(path) if path.is_dir() else [path]
            if not files:
                raise UsageError(f"there is no workflow in {path}", hint="name a folder with `*.yaml` files")
        except UsageError as error:
            problems.append(unreadable(str(path), error))
            continue
        valid, wrong = load_each(files, actions=catalog, within=path if path.is_dir() else None)
        loaded += valid
        problems += wrong
    problems += of_one_name(loaded)
    return loaded, [_finding(problem) for problem in problems]


def lacks(
    workflows: Iterable[LoadedWorkflow], endpoints: Mapping[str, str], destinations: Collection[str]
) -> Iterator[Finding]:
    """What a run of each would lack before its first step."""
    missing = False
    told = tuple(workflows)
    for loaded in told:
        for problem in lacking(loaded, endpoints, never=none_for_certain, destinations=destinations):
            missing = True
            yield _finding(problem)
    if told and not missing:
        names = ", ".join(sorted({loaded.workflow.name for loaded in told}))
        yield fine(AREA, f"valid, with every endpoint and destination that they name: {names}")


def _finding(problem: Problem) -> Finding:
    place = f"{problem.file}:{problem.line}:{problem.column}"
    return fault(AREA, f"{place}: {problem.message}", problem.hint, ExitCode.INVALID)
