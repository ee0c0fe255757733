"""Everything that can be found wrong with a folder of policies before it is asked anything, in one go."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from orchestrator.policy.authoring.child import path_of
from orchestrator.policy.authoring.discovery import Case, cases_in
from orchestrator.policy.authoring.unbound import unbound_variables
from orchestrator.policy.engines.rego.data import check_data, data_problem
from orchestrator.policy.engines.rego.engine import DECISION_RULE, SEE_OPA, undefined_or_unsafe
from orchestrator.policy.engines.rego.folder import PolicySource, files_of, nothing_to_decide_by, read_source
from orchestrator.policy.engines.rego.modules import Call, Checked, Rule, check_modules
from orchestrator.policy.engines.rego.problems import (
    InvalidPolicy,
    PolicyProblem,
    problem_at,
    problem_of,
    without_backtrace,
)

MOST_PROBLEMS = 100
"""Who finds so many wrong stops looking."""

_PROBE = PolicySource("", "package orchestrator_probe\n\nfound := true\n")
_FOUND = "data.orchestrator_probe.found"


@dataclass(frozen=True, slots=True)
class CheckedFolder:
    """A folder's texts, its tests, and what is wrong with it, in the order of files and lines."""

    path: Path
    modules: tuple[PolicySource, ...]
    tests: tuple[PolicySource, ...]
    data: PolicySource | None
    cases: tuple[Case, ...] = ()
    problems: tuple[PolicyProblem, ...] = field(default=())

    @property
    def files(self) -> tuple[str, ...]:
        """The names of all files that were read."""
        data = [self.data] if self.data else []
        return tuple(source.name for source in (*self.modules, *self.tests, *data))


def check_folder(path: Path, *, evaluated: bool = True) -> CheckedFolder:
    """Read and check the rules, the tests and the data of a folder.

    With `evaluated` its rules are asked once, with nothing as the question, as an engine does when it starts. Raises
    UsageError where it is no folder, or there is no policy in it. regorus stops at the first thing that it cannot read
    in a file; whatever else is wrong is looked for where that makes sense.
    """
    files = files_of(path)
    if not files.modules:
        raise nothing_to_decide_by(path, "has no policy in it")
    problems = list(files.refused)
    modules = tuple(_read(files.modules, problems))
    tests = tuple(_read(files.tests, problems))
    data = next(_read([files.data] if files.data else [], problems), None)
    parsed = [source for source in (*modules, *tests) if _parses(source, problems)]
    trees = _engine(parsed).get_ast_as_json()
    checked = check_modules(trees)
    problems.extend(checked.problems)
    if data is not None:
        problems.extend(_wrong_data(data, checked))
    cases, no_cases = cases_in(checked.rules, tests)
    problems.extend(no_cases)
    if len(parsed) == len(files.modules) + len(files.tests):  # else whatever stands in the missing ones is not found
        problems.extend(_unsafe(parsed, checked))
        problems.extend(_unknown_functions(parsed, checked))
        told = {problem.place for problem in problems}
        problems.extend(each for each in unbound_variables(trees, checked.rules) if each.place not in told)
        problems.extend(_undecided(modules, data if not problems else None, evaluated=evaluated and not problems))
    found = sorted(dict.fromkeys(problems))[:MOST_PROBLEMS]
    return CheckedFolder(path, modules, tests, data, tuple(cases), tuple(found))


def _read(files: Sequence[Path], problems: list[PolicyProblem]) -> Iterator[PolicySource]:
    for file in files:
        try:
            yield read_source(file)
        except InvalidPolicy as error:
            problems.append(error.problem)


def _parses(source: PolicySource, problems: list[PolicyProblem]) -> bool:
    try:
        _engine([source])
    except RuntimeError as error:
        problem = problem_of(error, SEE_OPA)
        problems.append(problem if problem.file else replace(problem, file=source.name))
        return False
    return True


def _engine(sources: Sequence[PolicySource]) -> Any:
    """Raises RuntimeError where a module is no Rego."""
    import regorus

    engine = regorus.Engine()
    for source in sources:
        engine.add_policy(source.name, source.text)
    return engine


def _wrong_data(data: PolicySource, checked: Checked) -> Iterator[PolicyProblem]:
    found = list(islice(check_data(data, checked.packages), MOST_PROBLEMS))
    yield from found
    if not found:
        try:
            _engine([]).add_data_json(data.text)
        except (RuntimeError, ValueError) as error:
            yield data_problem(data, error)


def _unsafe(sources: Sequence[PolicySource], checked: Checked) -> Iterator[PolicyProblem]:
    """Variables from nowhere and the like. regorus tells one at a time: its rule is taken out, and asked again."""
    texts = {source.name: source.text.encode() for source in sources}
    rules = list(checked.rules)
    for _ in range(MOST_PROBLEMS):
        left = [PolicySource(name, text.decode()) for name, text in texts.items()]
        try:
            _engine([*left, _PROBE, *_stand_ins(checked.rules, rules)]).eval_rule(_FOUND)
            return
        except RuntimeError as error:
            problem = problem_of(error, SEE_OPA)
        yield problem
        wrong = next((rule for rule in rules if _holds(rule, problem, texts)), None)
        if wrong is None:
            return
        rules.remove(wrong)
        text = texts[wrong.file]
        gone = bytes(byte if byte == ord("\n") else ord(" ") for byte in text[wrong.first : wrong.last])
        texts[wrong.file] = text[: wrong.first] + gone + text[wrong.last :]


def _holds(rule: Rule, problem: PolicyProblem, texts: dict[str, bytes]) -> bool:
    last_line = texts[rule.file][: rule.last].count(b"\n") + 1 if rule.file in texts else 0
    return rule.file == problem.file and rule.line <= problem.line <= last_line


def _stand_ins(rules: Sequence[Rule], left: Sequence[Rule]) -> Iterator[PolicySource]:
    """A rule for each name that was taken out, so that those who use it are not said to be wrong, too."""
    names = {(rule.package, rule.first_name) for rule in rules if not rule.is_function}
    for package, name in sorted(names - {(rule.package, rule.first_name) for rule in left}):
        yield PolicySource("", f"package {path_of(package)}\n\n{name} := true\n")


def _unknown_functions(sources: Sequence[PolicySource], checked: Checked) -> Iterator[PolicyProblem]:
    """Calls of what is neither a function of these modules nor built in: regorus finds it only when it is called."""
    functions = {rule.name for rule in checked.rules if rule.is_function}
    built_in: dict[str, bool] = {}
    texts = {source.name: source.text for source in sources}
    for call in checked.calls:
        if call.name in functions:
            continue
        if call.written not in built_in:
            built_in[call.written] = _is_built_in(call)
        if not built_in[call.written]:
            message = f"there is no function `{call.written}`"
            yield problem_at(texts[call.file], call.file, call.line, call.column, message)


def _is_built_in(call: Call) -> bool:
    try:
        probe = PolicySource("", f"package orchestrator_probe\n\nfound := {call.written}(1)\n")
        _engine([probe]).eval_rule(_FOUND)
    except RuntimeError as error:
        return "could not find function" not in without_backtrace(error)
    return True


def _undecided(
    modules: Sequence[PolicySource], data: PolicySource | None, *, evaluated: bool
) -> Iterator[PolicyProblem]:
    """That there is no `decision`, or what evaluating it finds: rules that contradict each other, whatever is asked."""
    engine = _engine(modules)
    names = check_modules(engine.get_ast_as_json()).names
    if data is not None:
        engine.add_data_json(data.text)
    if (evaluated or DECISION_RULE not in names) and (found := undefined_or_unsafe(engine, modules, names)):
        yield found
