"""What a Rego module must not contain, found in its syntax tree before anything is asked.

OPA refuses most of it when it compiles; regorus finds it while it evaluates, if at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.policy.engines.rego.problems import PolicyProblem, problem_at

_FORBIDDEN = {
    "http.send": "asks the network",
    "net.lookup_ip_addr": "asks the network",
    "opa.runtime": "reads the environment of this process",
    "print": "writes to standard error what may be confidential",
    "rand.intn": "gives another answer each time",
    "time.now_ns": "gives another answer each time",
    "uuid.rfc4122": "gives another answer each time",
}
_PURE = "a decision follows from `input` alone, so that it can be explained later; the time is `input.time`"

_Tree = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Call:
    """A function that is called, by its name in the module and its full one, and where."""

    written: str
    name: str
    file: str
    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule, or one part of it where several have the name. `first` and `last` are its bytes in the module."""

    package: str
    head: str
    file: str
    line: int
    column: int
    first: int
    last: int
    is_function: bool
    is_default: bool
    is_plain: bool
    """Whether it is one value: neither a function, a default, nor a set or an object in parts."""

    @property
    def name(self) -> str:
        """The full name: `data.orchestrator.decision`."""
        return f"data.{self.package}.{self.head}"

    @property
    def first_name(self) -> str:
        """What the rule is called in its own package: `a` of `a.b := 1`."""
        return self.head.partition(".")[0]


@dataclass(frozen=True, slots=True)
class Checked:
    """What modules define and call, and what must not be in them, in the order of the files."""

    rules: tuple[Rule, ...]
    packages: frozenset[str]
    calls: tuple[Call, ...]
    problems: tuple[PolicyProblem, ...]

    @property
    def names(self) -> frozenset[str]:
        """The full names of all rules: `data.orchestrator.decision`."""
        return frozenset(rule.name for rule in self.rules)


def check_modules(modules: str) -> Checked:
    """Read the syntax trees that regorus gives as JSON.

    A problem is a call whose answer does not follow from its arguments, a function that calls itself (it would overflow
    the native stack), and a second default of a rule.
    """
    rules: list[Rule] = []
    packages: set[str] = set()
    calls: list[Call] = []
    problems: list[PolicyProblem] = []
    callees: dict[Rule, set[str]] = {}
    texts: dict[str, str] = {}
    for module in json.loads(modules):
        file, tree = module["source"]["file"], module["ast"]
        texts[file] = module["source"]["contents"]
        package = f"data.{_dotted(tree['package']['refr'])}"
        packages.add(package)
        text = texts[file].encode()
        imported = dict(_import(text, each) for each in tree["imports"])
        for branch in tree["rules"]:
            rule = _rule(file, package, branch)
            if rule.is_default and any(other.is_default and other.name == rule.name for other in rules):
                message, hint = f"`{rule.name}` has a second default", "a rule has one `default`"
                problems.append(problem_at(texts[file], file, rule.line, rule.column, message, hint))
            rules.append(rule)
            for use in _uses(branch):
                if why := _FORBIDDEN.get(use.name):
                    message = f"`{use.name}` {why}, and no policy may use it"
                    problems.append(problem_at(texts[file], file, use.line, use.column, message, _PURE))
                elif use.is_call:
                    full = _full(use.name, package, imported)
                    calls.append(Call(use.name, full, file, use.line, use.column))
                    callees.setdefault(rule, set()).add(full)
    functions = {rule: callees.get(rule, set()) for rule in rules if rule.is_function}
    for rule in _recursive(functions):
        message = f"the function `{rule.name}` calls itself"
        hint = "Rego knows no recursion; walk over a list with `every` or a comprehension"
        problems.append(problem_at(texts[rule.file], rule.file, rule.line, rule.column, message, hint))
    return Checked(tuple(rules), frozenset(packages), tuple(calls), tuple(problems))


@dataclass(frozen=True, slots=True)
class _Use:
    """The dotted name of a function that is called, or replaced by `with`."""

    name: str
    line: int
    column: int
    is_call: bool


def _uses(tree: object) -> Iterator[_Use]:
    if isinstance(tree, list):
        for part in tree:
            yield from _uses(part)
    elif isinstance(tree, dict):
        for kind, part in tree.items():
            if kind == "Call":
                yield _Use(_dotted(part["fcn"]), part["span"]["line"], part["span"]["col"], is_call=True)
            elif kind == "with_mods":
                for replaced in part:
                    span = replaced["span"]
                    yield _Use(_dotted(replaced["refr"]), span["line"], span["col"], is_call=False)
            yield from _uses(part)


def _recursive(functions: Mapping[Rule, set[str]]) -> Iterator[Rule]:
    reached: dict[str, set[str]] = {}
    for function, called in functions.items():
        reached.setdefault(function.name, set()).update(called)
    for function in functions:
        seen: set[str] = set()
        to_see = [*reached[function.name]]
        while to_see:
            name = to_see.pop()
            if name == function.name:
                yield function
                break
            if name in reached and name not in seen:
                seen.add(name)
                to_see.extend(reached[name])


def _rule(file: str, package: str, tree: _Tree) -> Rule:
    ((kind, node),) = tree.items()
    span = node["span"]
    if kind == "Default":
        reference, is_function, is_plain = node["refr"], bool(node["args"]), False
    else:
        ((shape, head),) = node["head"].items()
        reference, is_function = head["refr"], shape == "Func"
        is_plain = shape == "Compr" and "Var" in reference
    return Rule(
        package=package.removeprefix("data."),
        head=_dotted(reference),
        file=file,
        line=span["line"],
        column=span["col"],
        first=span["start"],
        last=span["end"],
        is_function=is_function,
        is_default=kind == "Default",
        is_plain=is_plain,
    )


def _import(text: bytes, tree: _Tree) -> tuple[str, str]:
    """The name under which a module knows something, and its path."""
    path, alias = _dotted(tree["refr"]), tree.get("as")
    return text[alias["start"] : alias["end"]].decode() if alias else path.rpartition(".")[2], path


def _full(callee: str, package: str, imported: Mapping[str, str]) -> str:
    first, dot, rest = callee.partition(".")
    if first in imported:
        return imported[first] + dot + rest
    return callee if first == "data" else f"{package}.{callee}"


def _dotted(reference: _Tree) -> str:
    """`a.b["c"]` as `a.b.c`; what stands behind a part that is not constant is left out."""
    parts: list[str] = []
    while True:
        ((kind, node),) = reference.items()
        if kind == "RefDot":
            parts.append(node["field"][1])
        elif kind != "RefBrack":
            return ".".join([str(node.get("value", "")), *reversed(parts)])
        elif "String" in node["index"]:
            parts.append(node["index"]["String"]["value"])
        else:
            parts.clear()
        reference = node["refr"]
