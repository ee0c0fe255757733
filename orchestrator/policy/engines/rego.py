"""Policies in Rego, evaluated in this process by regorus.

The rule `data.orchestrator.decision` is asked with the document of `PolicyRequest.as_json` as `input`, and
`data.orchestrator.admit`, if there is one, before that. Whatever goes wrong on the way to an answer is a denial with
a reason.

Why regorus, in the build `gordon-to-regorus` (Microsoft publishes none for Python): `tests/unit/test_rego_engines.py`
asks it and Microsoft's other evaluator (rego-cpp, as `regopy` 1.5) the same questions. rego-cpp dies of a long text in
`regex.match`, takes `"5" <= 900` for true, does not parse `{k | some k, v in x; v}`, mistakes `every` over the set in
our own sample policies, writes JSON that is none, and says of a contradiction neither what nor where; it also never
came back from a pattern that backtracks, and tells `opa.runtime` the environment. regorus does none of that, and an
error in a built-in function is a denial here where others make it undefined. That the build is one person's is answered
by a pinned version with its hash (`requirements/`) and by the second opinion in the tests. What regorus itself does not
refuse is refused here: see `rego_check`, and `_exact` for numbers that it would compare as floating point.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.errors import UsageError
from orchestrator.jsontypes import JsonObject, JsonValue
from orchestrator.policy.documents import decision_from
from orchestrator.policy.engines.rego_check import check_modules
from orchestrator.policy.types import Decision, PolicyRequest, Question

DECISION_RULE = "data.orchestrator.decision"
ADMIT_RULE = "data.orchestrator.admit"
_RULES = {Question.DECISION: DECISION_RULE, Question.ADMIT: ADMIT_RULE}

MAX_INPUT_BYTES = 1 << 20
"""The longest question: an evaluator has no other limit of its time, and inputs are an author's."""

_EXACT = range(-(1 << 63), 1 << 63)
"""The whole numbers that regorus compares as such."""

_POSITION = re.compile(r"^-->\s*(?P<file>.+):(?P<line>\d+):(?P<column>\d+)\s*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class PolicySource:
    """One Rego module. `name` is the path that error messages show."""

    name: str
    text: str


class _Compiled:
    """An engine of regorus, which may be used and ended by the thread that made it only.

    The garbage collector runs in any thread. What it finds in another one is never ended: some kilobytes are lost
    instead of an exception that nobody can catch.
    """

    __slots__ = ("_thread", "engine")

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self._thread = threading.current_thread()

    @property
    def is_usable(self) -> bool:
        """Whether this is its thread."""
        return threading.current_thread() is self._thread

    def __del__(self) -> None:
        if not self.is_usable:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.engine))


@dataclass(frozen=True, slots=True, eq=False)
class RegoEngine:
    """Decides by Rego modules. Made by `from_directory`, or from texts by `from_sources`.

    regorus binds a compiled engine to the thread that made it, for use and for its end. Decisions in
    that thread share it: nothing is awaited between setting the input and reading the answer, so any
    number of tasks may ask at once. In other threads every decision compiles the modules anew (2 ms).
    """

    sources: tuple[PolicySource, ...]
    revision: str
    admits: bool = False
    """Whether the policies have a rule `admit`."""
    name: str = "rego"
    _compiled: _Compiled | None = field(default=None, repr=False)

    @classmethod
    def from_directory(cls, path: Path) -> RegoEngine:
        """All `*.rego` files directly in a folder, by name, without the tests (`*_test.rego`) and hidden files.

        Raises UsageError where there is none, or where one cannot be read or compiled.
        """
        found = sorted(path.glob("*.rego"))
        files = [file for file in found if not file.name.startswith(".") and not file.name.endswith("_test.rego")]
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
        compiled, rules = _compile(sources)
        return cls(tuple(sources), revision_of(sources), ADMIT_RULE in rules, _compiled=compiled)

    async def decide(self, request: PolicyRequest) -> Decision:
        """Ask the rule `decision`. Takes well under a millisecond, so it is done in place."""
        return self.ask(Question.DECISION, request.as_json())

    async def admit(self, request: PolicyRequest) -> Decision | None:
        """Ask the rule `admit`; None where no module defines it."""
        return self.ask(Question.ADMIT, request.as_json()) if self.admits else None

    def ask(self, question: Question, document: JsonObject) -> Decision:
        """Ask with a document, one that was recorded, too. Never raises for what a policy says."""
        try:
            answer = self._evaluate(_RULES[question], _document(document))
        except (RuntimeError, ValueError) as error:
            return self._denied(_first_line(error))
        except BaseException as error:
            if type(error).__name__ != "PanicException":
                raise
            return self._denied("the evaluator broke down")
        return decision_from(answer, engine=self.name, revision=self.revision)

    def _evaluate(self, rule: str, document: str) -> Any:
        compiled = self._compiled
        if compiled is None or not compiled.is_usable:
            compiled, _ = _compile(self.sources)
        compiled.engine.set_input_json(document)
        return compiled.engine.eval_rule(rule)

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


def _document(question: JsonObject) -> str:
    """The question as JSON. Raises ValueError where it cannot be asked exactly as it is."""
    _exact(question)
    document = json.dumps(question, ensure_ascii=False, allow_nan=False)
    if len(document) > MAX_INPUT_BYTES or len(document.encode()) > MAX_INPUT_BYTES:
        raise ValueError(f"the question is longer than {MAX_INPUT_BYTES} bytes")
    return document


def _exact(value: JsonValue) -> None:
    if isinstance(value, int) and value not in _EXACT:
        raise ValueError("the question holds a whole number that cannot be compared exactly (beyond 64 bits)")
    if isinstance(value, Mapping):
        value = list(value.values())
    for part in value if isinstance(value, list | tuple) else ():
        _exact(part)


def _compile(sources: Sequence[PolicySource]) -> tuple[_Compiled, frozenset[str]]:
    """A regorus engine, and the names of the rules it has."""
    import regorus

    compiled = _Compiled(regorus.Engine())
    for source in sources:
        try:
            compiled.engine.add_policy(source.name, source.text)
        except RuntimeError as error:
            raise UsageError(*_where(error), hint="`opa check` and `opa fmt` show more") from error
    rules = check_modules(compiled.engine.get_ast_as_json())
    _check_defined(compiled, sources, rules)
    return compiled, rules


def _check_defined(compiled: _Compiled, sources: Sequence[PolicySource], rules: frozenset[str]) -> None:
    """regorus compiles lazily: evaluate once, so that unsafe variables and a missing rule are found at the start."""
    compiled.engine.set_input_json("{}")
    try:
        compiled.engine.eval_rule(DECISION_RULE)
        if ADMIT_RULE in rules:
            compiled.engine.eval_rule(ADMIT_RULE)
    except RuntimeError as error:
        text = _without_backtrace(error)
        if "not a valid rule path" in text:
            names = ", ".join(source.name for source in sources)
            raise UsageError(
                f"no policy defines {DECISION_RULE} ({names})",
                hint="write `package orchestrator` and a rule `decision` with `allow` and `reasons`",
            ) from error
        raise UsageError(*_where(error), hint="`opa check` and `opa fmt` show more") from error


def _where(error: Exception) -> tuple[str]:
    """regorus says `--> file:line:column`, an excerpt and `error: ...`; people expect the place first."""
    text = _without_backtrace(error)
    position = _POSITION.search(text)
    if position is None:
        return (f"the policy is not valid: {text}",)
    excerpt, _, message = text[position.end() :].strip("\n").partition("\nerror:")
    place = f"{position['file']}:{position['line']}:{position['column']}"
    return (f"{place}: {message.strip() or 'not valid'}\n{excerpt}",)


def _first_line(error: Exception) -> str:
    """The place and the message. UnicodeEncodeError, a ValueError, would quote the whole question."""
    if isinstance(error, UnicodeError):
        return "the question holds a text that is not Unicode (half of a surrogate pair)"
    text = _without_backtrace(error)
    return (_where(error)[0] if _POSITION.search(text) else text or type(error).__name__).splitlines()[0]


def _without_backtrace(error: Exception) -> str:
    return str(error).partition("Stack backtrace:")[0].strip()


def _read(file: Path) -> str:
    try:
        if not file.is_file():
            raise OSError("not a regular file")
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: cannot be read as UTF-8 text: {error}") from error
