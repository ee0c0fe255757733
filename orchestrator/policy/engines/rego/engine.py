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
refuse is refused here: see `modules`, and `_exact` for numbers that it would compare as floating point.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.jsontypes import JsonObject, JsonValue
from orchestrator.policy.documents import decision_from
from orchestrator.policy.engines.rego.data import check_data, data_problem
from orchestrator.policy.engines.rego.folder import PolicySource as PolicySource
from orchestrator.policy.engines.rego.folder import files_of, nothing_to_decide_by, read_source
from orchestrator.policy.engines.rego.modules import Rule, check_modules
from orchestrator.policy.engines.rego.problems import InvalidPolicy, PolicyProblem, problem_of, reason_of
from orchestrator.policy.types import Decision, PolicyRequest, Question

DECISION_RULE = "data.orchestrator.decision"
ADMIT_RULE = "data.orchestrator.admit"
_RULES = {Question.DECISION: DECISION_RULE, Question.ADMIT: ADMIT_RULE}

MAX_INPUT_BYTES = 1 << 20
"""The longest question: an evaluator has no other limit of its time, and inputs are an author's."""

SEE_OPA = "`opa check` and `opa fmt` show more"

_EXACT = range(-(1 << 63), 1 << 63)
"""The whole numbers that regorus compares as such."""


class _Compiled:
    """An engine of regorus, which may be used and ended by the thread that made it only.

    The garbage collector runs in any thread. What it finds in another one is never ended: some kilobytes are lost
    instead of an exception that nobody can catch.
    """

    __slots__ = ("_thread", "admits", "engine")

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.admits = False
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
    data: PolicySource | None = None
    """The text of `data.json`."""
    _compiled: _Compiled | None = field(default=None, repr=False)

    @classmethod
    def from_directory(cls, path: Path) -> RegoEngine:
        """The rules and the data of a folder, as `folder` says, without the tests.

        Raises UsageError where there are no rules, or where a file cannot be read, compiled or understood.
        """
        files = files_of(path)
        for problem in files.refused:
            raise InvalidPolicy(problem)
        if not files.modules:
            raise nothing_to_decide_by(path, "has no policy in it")
        modules = [read_source(file) for file in files.modules]
        return cls.from_sources(modules, read_source(files.data) if files.data else None)

    @classmethod
    def from_sources(cls, sources: Sequence[PolicySource], data: PolicySource | None = None) -> RegoEngine:
        """Compile the modules now, so that a broken policy is found before anything runs. Raises UsageError."""
        compiled = _checked(sources, data)
        revision = revision_of(sources if data is None else [*sources, data])
        return cls(tuple(sources), revision, compiled.admits, data=data, _compiled=compiled)

    async def decide(self, request: PolicyRequest) -> Decision:
        """Ask the rule `decision`. Takes well under a millisecond, so it is done in place."""
        return self.ask(Question.DECISION, request.as_json())

    async def admit(self, request: PolicyRequest) -> Decision | None:
        """Ask the rule `admit`; None where no module defines it."""
        return self.ask(Question.ADMIT, request.as_json()) if self.admits else None

    def ask(self, question: Question, document: JsonObject) -> Decision:
        """Ask with a document, one that was recorded, too. Never raises for what a policy says."""
        try:
            answer = self.evaluate(_RULES[question], document)
        except (RuntimeError, ValueError) as error:
            return self._denied(reason_of(error))
        except BaseException as error:
            if type(error).__name__ != "PanicException":
                raise
            return self._denied("the evaluator broke down")
        return decision_from(answer, engine=self.name, revision=self.revision)

    def evaluate(self, rule: str, document: JsonObject) -> Any:
        """The value of a rule (`data.orchestrator.decision`) with this `input`, as regorus gives it.

        Raises RuntimeError where that is an error, also for a rule that there is not, and ValueError for a document
        that cannot be asked with as it is. An undefined one is no JSON.
        """
        return self._evaluate(rule, _document(document))

    def _evaluate(self, rule: str, text: str) -> Any:
        engine = self._usable().engine
        engine.set_input_json(text)
        try:
            return engine.eval_rule(rule)
        except TypeError:  # a set with an object or a list in it, which Python's sets cannot hold
            return json.loads(engine.eval_rule_as_json(rule))

    def rules(self) -> tuple[Rule, ...]:
        """Every rule of the modules, part by part, in the order of the files."""
        return check_modules(self._usable().engine.get_ast_as_json()).rules

    def _usable(self) -> _Compiled:
        compiled = self._compiled
        return compiled if compiled is not None and compiled.is_usable else _loaded(self.sources, self.data)

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


def _checked(sources: Sequence[PolicySource], data: PolicySource | None) -> _Compiled:
    """The modules compiled, and everything looked at. Raises InvalidPolicy with the first thing that is wrong."""
    compiled = _loaded(sources, None)
    checked = check_modules(compiled.engine.get_ast_as_json())
    for problem in (*checked.problems, *(check_data(data, checked.packages) if data else ())):
        raise InvalidPolicy(problem)
    if data is not None:
        _add_data(compiled, data)
    if problem := undefined_or_unsafe(compiled.engine, sources, checked.names):
        raise InvalidPolicy(problem)
    compiled.admits = ADMIT_RULE in checked.names
    return compiled


def _loaded(sources: Sequence[PolicySource], data: PolicySource | None) -> _Compiled:
    """A regorus engine with the modules and the data. Raises InvalidPolicy."""
    import regorus

    compiled = _Compiled(regorus.Engine())
    for source in sources:
        try:
            compiled.engine.add_policy(source.name, source.text)
        except RuntimeError as error:
            raise InvalidPolicy(problem_of(error, SEE_OPA)) from error
    if data is not None:
        _add_data(compiled, data)
    return compiled


def _add_data(compiled: _Compiled, data: PolicySource) -> None:
    try:
        compiled.engine.add_data_json(data.text)
    except (RuntimeError, ValueError) as error:
        raise InvalidPolicy(data_problem(data, error)) from error


def undefined_or_unsafe(engine: Any, sources: Sequence[PolicySource], names: Collection[str]) -> PolicyProblem | None:
    """regorus compiles lazily: evaluate once, so that unsafe variables and a missing rule are found at the start."""
    engine.set_input_json("{}")
    if DECISION_RULE not in names:
        files = ", ".join(source.name for source in sources)
        hint = "write `package orchestrator` and a rule `decision` with `allow` and `reasons`"
        return PolicyProblem("", 0, 0, f"no policy defines {DECISION_RULE} ({files})", hint)
    try:
        for rule in (DECISION_RULE, ADMIT_RULE):
            if rule in names:
                engine.eval_rule_as_json(rule)
    except RuntimeError as error:
        return problem_of(error, SEE_OPA)
    return None
