"""What a Rego module must not contain, found in its syntax tree before anything is asked.

OPA refuses most of it when it compiles; regorus finds it while it evaluates, if at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import UsageError

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
class _Function:
    """A function of a policy and where it begins."""

    name: str
    place: str


def check_modules(modules: str) -> frozenset[str]:
    """The full names of all rules in the syntax trees that regorus gives as JSON.

    Raises UsageError, with file, line and column, for a call whose answer does not follow from its arguments, for
    functions that call themselves (they would overflow the native stack), and for a second default of a rule.
    """
    rules: set[str] = set()
    defaults: set[str] = set()
    calls: dict[_Function, set[str]] = {}
    for module in json.loads(modules):
        file, tree = module["source"]["file"], module["ast"]
        package = f"data.{_dotted(tree['package']['refr'])}"
        text = module["source"]["contents"].encode()
        imported = dict(_import(text, each) for each in tree["imports"])
        for rule in tree["rules"]:
            head, function = _head(rule)
            name = f"{package}.{_dotted(head)}"
            rules.add(name)
            place = _place(file, rule)
            if "Default" in rule:
                if name in defaults:
                    raise UsageError(f"{place}: `{name}` has a second default", hint="a rule has one `default`")
                defaults.add(name)
            called = set(_called(rule, file))
            if function:
                calls.setdefault(_Function(name, place), set()).update(
                    _full(callee, package, imported) for callee in called
                )
    _refuse_recursion(calls)
    return frozenset(rules)


def _called(tree: object, file: str) -> Iterator[str]:
    """The dotted name of every function that is called, or replaced by `with`. Raises UsageError."""
    if isinstance(tree, list):
        for part in tree:
            yield from _called(part, file)
    elif isinstance(tree, dict):
        for kind, part in tree.items():
            name = ""
            if kind == "Call":
                name = _dotted(part["fcn"])
                yield name
            elif kind == "with_mods":
                for replaced in part:
                    name = name if name in _FORBIDDEN else _dotted(replaced["refr"])
            if why := _FORBIDDEN.get(name):
                place = _place(file, {"": part[0] if kind == "with_mods" else part})
                raise UsageError(f"{place}: `{name}` {why}, and no policy may use it", hint=_PURE)
            yield from _called(part, file)


def _refuse_recursion(calls: Mapping[_Function, set[str]]) -> None:
    reached: dict[str, set[str]] = {}
    for function, called in calls.items():
        reached.setdefault(function.name, set()).update(called)
    for function in calls:
        seen: set[str] = set()
        to_see = [*reached[function.name]]
        while to_see:
            name = to_see.pop()
            if name == function.name:
                raise UsageError(
                    f"{function.place}: the function `{function.name}` calls itself",
                    hint="Rego knows no recursion; walk over a list with `every` or a comprehension",
                )
            if name in reached and name not in seen:
                seen.add(name)
                to_see.extend(reached[name])


def _head(rule: _Tree) -> tuple[_Tree, bool]:
    """The reference that names a rule, and whether it is a function."""
    if "Default" in rule:
        return rule["Default"]["refr"], bool(rule["Default"]["args"])
    ((kind, head),) = rule["Spec"]["head"].items()
    return head["refr"], kind == "Func"


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


def _place(file: str, tree: _Tree) -> str:
    (node,) = tree.values()
    span = node["span"]
    return f"{file}:{span['line']}:{span['col']}"
