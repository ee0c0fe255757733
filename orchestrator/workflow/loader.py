"""Reading a workflow file: all that is wrong with it at once, or a workflow that can be run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestrator.errors import UsageError
from orchestrator.workflow.checks import check
from orchestrator.workflow.files import read_text
from orchestrator.workflow.models.workflow import Schedule, Workflow
from orchestrator.workflow.parameters import ActionCatalog
from orchestrator.workflow.problems import InvalidWorkflow, Problem
from orchestrator.workflow.shape import report_errors, shape_problems
from orchestrator.workflow.source import Source, parse

SUFFIXES = (".yaml", ".yml")
"""Of the files that are workflows, in a folder of them."""


@dataclass(frozen=True, slots=True)
class LoadedWorkflow:
    """A valid workflow, with the digest of its text (`sha256:HEX`).

    The positions of everything in it are found again when they are asked for: a scheduler keeps many workflows.
    """

    workflow: Workflow
    digest: str
    filename: str
    text: str = field(repr=False)
    actions: ActionCatalog = field(repr=False, compare=False)
    """By which its actions were looked up."""
    directory: str = field(default="", compare=False)
    """Where the file is, absolute; empty for a text that came from nowhere. What it names by a relative path is there.
    """

    @property
    def variables(self) -> dict[str, str]:
        """What expressions see of it as `workflow`."""
        return {"name": self.workflow.name, **({"dir": self.directory} if self.directory else {})}

    @property
    def schedule(self) -> Schedule | None:
        """When it is to be run by itself."""
        return self.workflow.schedule

    def refuse_tools(self, hint: str) -> None:
        """Raise UsageError for what is not run: its tools are called while a task is open."""
        if self.workflow.is_task:
            raise UsageError(
                f"`{self.workflow.name}` declares tools, which an agent calls while a task is open: it is not run",
                hint=hint,
            )

    def source(self) -> Source:
        """The text with what the YAML parser says of it; read again, unless it was the last that was read."""
        return _source(self.text, self.filename)

    def place(self, part: str, *below: str | int) -> tuple[str | int, ...]:
        """Where a step or a tool stands in the file, or something below it."""
        return (self.workflow.section, part, *below)

    def problem(self, path: Sequence[str | int], message: str, hint: str = "", *, warning: bool = False) -> Problem:
        """A finding at a place of the file, for whoever checks more than the language does."""
        return self.source().problem(path, message, hint, warning=warning)


@lru_cache(maxsize=1)
def _source(text: str, filename: str) -> Source:
    """Reading YAML takes most of the time of loading: what is checked after it finds the last one again."""
    return parse(text, filename)


def load(path: Path, *, actions: ActionCatalog, within: Path | None = None) -> LoadedWorkflow:
    """Read a file. Raises InvalidWorkflow with all that is wrong, or UsageError if it cannot be read.

    `within`: the folder that a link may not lead out of, for a file that nobody named.
    """
    text = read_text(path, within=within)
    return load_text(text, filename=str(path), actions=actions, directory=str(path.parent.absolute()))


def load_each(
    paths: Iterable[Path], *, actions: ActionCatalog, within: Path | None = None
) -> tuple[list[LoadedWorkflow], list[Problem]]:
    """Read several files: those that are valid, and what is wrong with the others; none of them hides another."""
    loaded: list[LoadedWorkflow] = []
    problems: list[Problem] = []
    for path in paths:
        try:
            loaded.append(load(path, actions=actions, within=within))
        except InvalidWorkflow as error:
            problems += error.problems
        except UsageError as error:
            problems.append(unreadable(str(path), error))
    return loaded, problems


def files_of(folder: Path) -> list[Path]:
    """The workflows of a folder, by name: `*.yaml` and `*.yml`, not those of the folders in it, nor hidden ones.

    Raises UsageError for a folder that cannot be read.
    """
    try:
        return sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and not path.name.startswith("."))
    except OSError as error:
        raise UsageError(f"{folder} cannot be read: {error.strerror}", hint="name the folder with workflows") from error


def of_one_name(loaded: Iterable[LoadedWorkflow]) -> Iterator[Problem]:
    """Each workflow whose name another file before it has."""
    first: dict[str, LoadedWorkflow] = {}
    for each in loaded:
        before = first.setdefault(each.workflow.name, each)
        if before is not each:
            yield each.problem(
                ("name",),
                f"{before.filename} and {each.filename} both have a workflow `{each.workflow.name}`",
                "give one of them another name: what is installed for a step goes by the workflow's name",
            )


def unreadable(filename: str, error: UsageError) -> Problem:
    """A file that cannot be read at all, as a finding beside those of others."""
    return Problem(filename, 1, 1, error.message, error.hint or "")


def load_text(text: str, *, filename: str, actions: ActionCatalog, directory: str = "") -> LoadedWorkflow:
    """Read a workflow from text, which belongs to a `directory`, absolute.

    Raises InvalidWorkflow with everything that is wrong with it.
    """
    read = _source(text, filename)
    source = replace(read, problems=list(read.problems))
    workflow = _validated(source) if source.data is not None else None
    if isinstance(source.data, dict):
        check(source, actions)
    if source.problems:
        raise InvalidWorkflow(source.problems)
    if workflow is None:
        raise InvalidWorkflow([source.at(1, 1, "a workflow is a map with `version`, `name`, `agent` and `steps`")])
    return LoadedWorkflow(workflow, digest_of(text), filename, text, actions, directory)


def digest_of(text: str) -> str:
    """What a version of a workflow is known by: `sha256:HEX` of its text."""
    return "sha256:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _validated(source: Source) -> Workflow | None:
    shape_problems(source)
    data: Any = source.data
    try:
        return Workflow.model_validate(data)
    except ValidationError as error:
        report_errors(source, error, ())
        return None
