"""Policies that are read anew when their files change, while runs go on.

Before each question the folder's files are read (a few files, some ten microseconds); where they differ from what is
in use an engine is made of them. Files that change while they are read are read again, so that no engine is made of
half of them. Who replaces several files one after another is seen in between, too: exchange the folder (a rename, a
symbolic link, a ConfigMap) instead.
"""

from __future__ import annotations

import hashlib
import logging
import stat
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

from orchestrator.errors import UsageError
from orchestrator.policy.admission import admission
from orchestrator.policy.types import Decision, PolicyEngine, PolicyRequest

log = logging.getLogger(__name__)

_TRIES = 5
"""How often files are read again that change while they are read."""


class OnError(StrEnum):
    """What decides while the changed policies are not valid: those of before, or nobody (everything is denied)."""

    KEEP = "keep"
    DENY = "deny"


class WatchedPolicies:
    """An engine made of the files of a folder, and another one when they change. Belongs to one event loop.

    `make` opens the engine of a folder. Raises UsageError if the policies are not valid to begin with.
    """

    def __init__(self, make: Callable[[Path], PolicyEngine], path: Path, on_error: OnError = OnError.KEEP) -> None:
        self._make, self._path, self._on_error = make, path, on_error
        self._digest, self._engine = self._read()
        self._refused = ""
        self._trouble = ""
        log.info("policies %s of %s", self.revision, path, extra={"revision": self.revision})

    @property
    def name(self) -> str:
        """The engine's."""
        return self._engine.name

    @property
    def engine(self) -> PolicyEngine:
        """The engine of the policies that were valid last."""
        return self._engine

    @property
    def revision(self) -> str:
        """Of the policies that were valid last."""
        return str(getattr(self._engine, "revision", self._digest))

    @property
    def trouble(self) -> str:
        """Why the changed policies are not in use; empty where they are."""
        return self._trouble

    async def decide(self, request: PolicyRequest) -> Decision:
        """Ask the policies that are there now."""
        self.refresh()
        return self._denial() or await self._engine.decide(request)

    async def admit(self, request: PolicyRequest) -> Decision | None:
        """Ask the policies that are there now, if they have this question."""
        self.refresh()
        return self._denial() or await admission(self._engine, request)

    def refresh(self) -> None:
        """Read the policies again if their files have changed. What is wrong with them is logged once, at ERROR."""
        found = ""
        try:
            found = _folder_digest(self._path)
            if found == self._digest:
                self._recovered()
                return
            if found == self._refused:
                return
            digest, engine = self._read()
        except OSError as error:
            self._refuse(found, _why(error, self._path))
        except UsageError as error:
            self._refuse(found, error.message)
        except BaseException as error:
            if type(error).__name__ != "PanicException":
                raise
            self._refuse(found, "the evaluator broke down")
        else:
            former = self.revision
            self._digest, self._engine = digest, engine
            self._recovered()
            log.info("policies %s take the place of %s", self.revision, former, extra={"revision": self.revision})

    def _read(self) -> tuple[str, PolicyEngine]:
        """What the folder holds and the engine that was made of exactly that."""
        for _ in range(_TRIES):
            try:
                before = _folder_digest(self._path)
            except OSError as error:
                self._make(self._path)  # says better what is wrong, as far as it sees it
                raise UsageError(_why(error, self._path)) from error
            engine = self._make(self._path)
            try:
                if before == _folder_digest(self._path):
                    return before, engine
            except OSError:
                continue
        raise UsageError(f"{self._path} changes while it is read", hint="exchange the whole folder at once")

    def _denial(self) -> Decision | None:
        if not self._trouble or self._on_error is OnError.KEEP:
            return None
        reason = f"the policies have changed and cannot be used: {self._trouble.splitlines()[0]}"
        return Decision(False, (reason,), self.name, self.revision)

    def _refuse(self, digest: str, reason: str) -> None:
        self._refused = digest
        if reason != self._trouble:
            self._trouble = reason
            goes_on = "everything is denied" if self._on_error is OnError.DENY else f"{self.revision} goes on deciding"
            log.error("the changed policies cannot be used, %s: %s", goes_on, reason, extra={"revision": self.revision})

    def _recovered(self) -> None:
        self._refused = ""
        if self._trouble:
            self._trouble = ""
            log.info("the policies are valid again: %s", self.revision, extra={"revision": self.revision})


def _why(error: OSError, path: Path) -> str:
    return f"{error.filename or path}: {error.strerror or error}"


def _folder_digest(path: Path) -> str:
    """SHA-256 over names and contents of the files directly in a folder, without hidden ones. Raises OSError."""
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()):
        if file.name.startswith("."):
            continue
        kind = file.stat().st_mode
        if stat.S_ISDIR(kind):
            continue
        if not stat.S_ISREG(kind):
            raise OSError(0, "not a regular file", str(file))
        for part in (file.name.encode(errors="surrogateescape"), file.read_bytes()):
            digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()
