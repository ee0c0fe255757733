"""The workflows of a folder, loaded again when their files change.

A file that is not valid any more leaves its last valid version in place; a run keeps the version it
was started with. What is found wrong is told once for each version of a file.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from orchestrator.errors import UsageError
from orchestrator.grants.models import TokenGrant
from orchestrator.planning.readiness import any_may_run, lacking
from orchestrator.workflow.loader import SUFFIXES, LoadedWorkflow, load, load_text
from orchestrator.workflow.models.workflow import Schedule, Workflow
from orchestrator.workflow.parameters import ActionCatalog
from orchestrator.workflow.problems import InvalidWorkflow

log = logging.getLogger(__name__)

Stamp = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class KnownWorkflow:
    """What is kept of a valid workflow until it is run: its text, and when. Most wait for most of the time."""

    name: str
    schedule: Schedule | None
    digest: str
    filename: str
    text: str = field(repr=False)
    actions: ActionCatalog = field(repr=False)

    @property
    def workflow(self) -> Workflow:
        """The whole of it, read again."""
        return self.load().workflow

    def load(self) -> LoadedWorkflow:
        """The workflow to be run, as it was when the file was read. Raises InvalidWorkflow if an action is gone."""
        directory = str(Path(self.filename).parent.absolute())
        return load_text(self.text, filename=self.filename, actions=self.actions, directory=directory)


@dataclass(slots=True)
class _File:
    stamp: Stamp
    known: KnownWorkflow | None = None
    task: LoadedWorkflow | None = None
    problem: str = ""
    signing_keys: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The workflows to schedule, and the types of tasks, by name, and how many files could not be loaded."""

    workflows: Mapping[str, KnownWorkflow] = field(default_factory=lambda: MappingProxyType({}))
    invalid: int = 0
    tasks: Mapping[str, LoadedWorkflow] = field(default_factory=lambda: MappingProxyType({}))


class WorkflowFolder:
    """Reads `*.yaml` and `*.yml` of one folder, not of the folders in it. Not safe for threads."""

    def __init__(
        self, path: Path | None, actions: ActionCatalog, *, endpoints: Mapping[str, str] | None = None
    ) -> None:
        """None as path: there is nothing to schedule. Of `endpoints` that runs will lack a file's log line warns."""
        self.path = path
        self._actions = actions
        self._endpoints = endpoints
        self._files: dict[str, _File] = {}
        self._catalogue: Catalogue | None = None
        self._doubles: frozenset[str] = frozenset()

    @property
    def workflows(self) -> Mapping[str, KnownWorkflow]:
        """The workflows to schedule, as of the last look at the files."""
        return self._catalogue.workflows if self._catalogue else {}

    @property
    def tasks(self) -> Mapping[str, LoadedWorkflow]:
        """The types of tasks, as of the last look at the files."""
        return self._catalogue.tasks if self._catalogue else {}

    @property
    def signing_keys(self) -> frozenset[str]:
        """The transit keys by which tokens of these files are signed, as of the last look at them."""
        return frozenset().union(*(file.signing_keys for file in self._files.values()))

    def read(self) -> Catalogue:
        """Look at every file, load those that changed, and answer what is to be scheduled now.

        The answer is the same object as before while no file has changed. Raises UsageError if the folder
        itself cannot be read.
        """
        found = self._stamps()
        if self._catalogue is not None and found == {path: file.stamp for path, file in self._files.items()}:
            return self._catalogue
        for path in self._files.keys() - found.keys():
            log.info("%s is gone: its workflow is not scheduled any more", path)
            del self._files[path]
        for path, stamp in sorted(found.items()):
            known = self._files.get(path)
            if known is None or known.stamp != stamp:
                self._files[path] = self._load(path, stamp, known)
        self._catalogue = self._catalogued()
        return self._catalogue

    def _stamps(self) -> dict[str, Stamp]:
        stamps: dict[str, Stamp] = {}
        if self.path is None:
            return stamps
        try:
            with os.scandir(self.path) as entries:
                for entry in entries:
                    if entry.name.endswith(SUFFIXES) and not entry.name.startswith("."):
                        try:
                            status = entry.stat()
                        except FileNotFoundError:
                            continue
                        except OSError:  # a link to itself: what is wrong is said when it is loaded
                            stamps[entry.path] = (0, 0, 0)
                            continue
                        stamps[entry.path] = (status.st_mtime_ns, status.st_size, status.st_ino)
        except OSError as error:
            raise UsageError(
                f"the folder {self.path} cannot be read: {error.strerror}", hint="name the folder with the workflows"
            ) from error
        return stamps

    def _load(self, path: str, stamp: Stamp, known: _File | None) -> _File:
        before = known or _File(stamp)
        try:
            loaded = load(Path(path), actions=self._actions, within=self.path)
        except InvalidWorkflow as error:  # what is in the file is not for the log
            return self._invalid(path, stamp, before, f"{error.places}; `orchestrator validate` shows them")
        except UsageError as error:
            return self._invalid(path, stamp, before, error.message)
        except Exception as error:  # noqa: BLE001 -- a defect over one file may not keep the others from being read
            return self._invalid(path, stamp, before, f"reading it failed with a defect ({type(error).__name__})")
        if loaded.digest not in (each.digest for each in (before.known, before.task) if each):
            log.info("%s: loaded %s, %s", path, loaded.workflow.name, loaded.digest)
        self._warn_of_what_lacks(loaded)
        workflow = loaded.workflow
        if workflow.is_task:
            return _File(
                stamp, task=loaded, signing_keys=_signing_keys(workflow)
            )  # agents call its tools: nothing of it is run when it is due, or asked for
        return _File(
            stamp,
            KnownWorkflow(workflow.name, workflow.schedule, loaded.digest, path, loaded.text, self._actions),
            signing_keys=_signing_keys(workflow),
        )

    def _warn_of_what_lacks(self, loaded: LoadedWorkflow) -> None:
        if self._endpoints is None:
            return
        for problem in lacking(loaded, self._endpoints, never=any_may_run):
            log.warning("%s:%s: %s: %s", problem.file, problem.line, problem.message, problem.hint)

    def _invalid(self, path: str, stamp: Stamp, before: _File, why: str) -> _File:
        kept = "its last valid version stays in use" if before.known or before.task else "it is not scheduled"
        log.error("%s: %s\n%s", path, kept, why)
        return _File(stamp, before.known, before.task, why, before.signing_keys)

    def _catalogued(self) -> Catalogue:
        """Of two files with one name the one that had it before keeps it; at first, the first by file name."""
        workflows: dict[str, KnownWorkflow] = {}
        doubles = set()
        before = self._catalogue.workflows if self._catalogue else {}
        known = [(path, file.known) for path, file in self._files.items() if file.known is not None]
        known.sort(key=lambda each: (each[1].name not in before or before[each[1].name].filename != each[0], each[0]))
        for path, workflow in known:
            name = workflow.name
            if name in workflows:
                doubles.add(path)
                if path not in self._doubles:
                    first = workflows[name].filename
                    log.error("%s: %s has a workflow %s already; this one is not scheduled", path, first, name)
            else:
                workflows[name] = workflow
        tasks: dict[str, LoadedWorkflow] = {}
        for path, file in sorted(self._files.items()):
            if file.task is not None and tasks.setdefault(file.task.workflow.name, file.task) is not file.task:
                doubles.add(path)
                if path not in self._doubles:
                    log.error("%s: there is a task %s already; this one is not in use", path, file.task.workflow.name)
        self._doubles = frozenset(doubles)
        invalid = sum(bool(file.problem) for file in self._files.values()) + len(doubles)
        return Catalogue(MappingProxyType(workflows), invalid, MappingProxyType(tasks))


def _signing_keys(workflow: Workflow) -> frozenset[str]:
    grants = [grant for part in workflow.parts.values() for grant in part.grants.values()]
    tokens = [grant for grant in grants if isinstance(grant, TokenGrant)]
    return frozenset(each.key for each in tokens if each.profile != "identity" and each.mount == "transit")
