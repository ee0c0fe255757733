"""Policies in Rego, evaluated in this process by regorus.

The rule `data.orchestrator.decision` is asked with the document of `PolicyRequest.as_json` as `input`.
Whatever goes wrong on the way to an answer is a denial with a reason.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.errors import UsageError
from orchestrator.policy.types import Decision, PolicyRequest, decision_from

DECISION_RULE = "data.orchestrator.decision"

_POSITION = re.compile(r"^-->\s*(?P<file>.+):(?P<line>\d+):(?P<column>\d+)\s*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class PolicySource:
    """One Rego module. `name` is the path that error messages show."""

    name: str
    text: str


@dataclass(frozen=True, slots=True, eq=False)
class RegoEngine:
    """Decides by Rego modules. Made by `from_directory`, or from texts by `from_sources`.

    regorus binds a compiled engine to the thread that made it, for use and for its end. Decisions in
    that thread share it: nothing is awaited between setting the input and reading the answer, so any
    number of tasks may ask at once. In other threads every decision compiles the modules anew (2 ms).
    """

    sources: tuple[PolicySource, ...]
    revision: str
    name: str = "rego"
    _compiled: Any = field(default=None, repr=False)
    _thread: threading.Thread = field(default_factory=threading.current_thread, repr=False)

    @classmethod
    def from_directory(cls, path: Path) -> RegoEngine:
        """All `*.rego` files directly in a folder, by name, without the tests (`*_test.rego`).

        Raises UsageError where there is none, or where one cannot be read or compiled.
        """
        files = [file for file in sorted(path.glob("*.rego")) if not file.name.endswith("_test.rego")]
        if not files:
            what = "has no policy in it" if path.is_dir() else "is not a folder"
            raise UsageError(
                f"{path} {what}: there is nothing to decide by",
                hint="name a folder with *.rego files in ORCHESTRATOR_POLICY_PATH, or with `policy_path`",
            )
        return cls.from_sources([PolicySource(str(file), _read(file)) for file in files])

    @classmethod
    def from_sources(cls, sources: Sequence[PolicySource]) -> RegoEngine:
        """Compile the modules now, so that a broken policy is found before anything runs. Raises UsageError."""
        return cls(tuple(sources), revision_of(sources), _compiled=_compile(sources))

    async def decide(self, request: PolicyRequest) -> Decision:
        """Ask the rule. Takes well under a millisecond, so it is done in place."""
        try:
            answer = self._evaluate(json.dumps(request.as_json(), ensure_ascii=False))
        except RuntimeError as error:
            return self._denied(_first_line(error))
        except BaseException as error:
            if type(error).__name__ != "PanicException":
                raise
            return self._denied("the evaluator broke down")
        return decision_from(answer, engine=self.name, revision=self.revision)

    def _evaluate(self, document: str) -> Any:
        here = threading.current_thread() is self._thread
        engine = self._compiled if here else _compile(self.sources)
        engine.set_input_json(document)
        return engine.eval_rule(DECISION_RULE)

    def _denied(self, reason: str) -> Decision:
        return Decision(False, (f"the policy could not be evaluated: {reason}",), self.name, self.revision)


def revision_of(sources: Sequence[PolicySource]) -> str:
    """`sha256:HEX` over the file names (without folders) and contents: the same policies, the same revision."""
    digest = hashlib.sha256()
    for source in sorted(sources, key=lambda source: source.name):
        for part in (Path(source.name).name, source.text):
            encoded = part.encode()
            digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return f"sha256:{digest.hexdigest()}"


def _compile(sources: Sequence[PolicySource]) -> Any:
    import regorus

    engine = regorus.Engine()
    for source in sources:
        try:
            engine.add_policy(source.name, source.text)
        except RuntimeError as error:
            raise UsageError(*_where(error), hint="`opa check` and `opa fmt` show more") from error
    _check_defined(engine, sources)
    return engine


def _check_defined(engine: Any, sources: Sequence[PolicySource]) -> None:
    """regorus compiles lazily: evaluate once, so that unsafe variables and a missing rule are found at the start."""
    engine.set_input_json("{}")
    try:
        engine.eval_rule(DECISION_RULE)
    except RuntimeError as error:
        text = _without_backtrace(error)
        if "not a valid rule path" in text:
            names = ", ".join(source.name for source in sources)
            raise UsageError(
                f"no policy defines {DECISION_RULE} ({names})",
                hint="write `package orchestrator` and a rule `decision` with `allow` and `reasons`",
            ) from error
        raise UsageError(*_where(error), hint="`opa check` and `opa fmt` show more") from error


def _where(error: RuntimeError) -> tuple[str]:
    """regorus says `--> file:line:column`, an excerpt and `error: ...`; people expect the place first."""
    text = _without_backtrace(error)
    position = _POSITION.search(text)
    if position is None:
        return (f"the policy is not valid: {text}",)
    excerpt, _, message = text[position.end() :].strip("\n").partition("\nerror:")
    place = f"{position['file']}:{position['line']}:{position['column']}"
    return (f"{place}: {message.strip() or 'not valid'}\n{excerpt}",)


def _first_line(error: RuntimeError) -> str:
    return _where(error)[0].splitlines()[0]


def _without_backtrace(error: RuntimeError) -> str:
    return str(error).partition("Stack backtrace:")[0].strip()


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: cannot be read as UTF-8 text: {error}") from error
