"""Variables in the value of a rule that come from nowhere, as of a name that is misspelt.

regorus checks the conditions of all rules when it compiles, but values (`x := [who]`) only when it comes to them, in
which case the decision is an error. Scopes are not told apart: a variable that is in a condition of its rule, or is
given a value anywhere in it, is taken for bound.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.policy.engines.rego.modules import Rule
from orchestrator.policy.engines.rego.problems import PolicyProblem, problem_at

_EVERYWHERE = {"input", "data", "_"}


def unbound_variables(modules: str, rules: tuple[Rule, ...]) -> Iterator[PolicyProblem]:
    """In the syntax trees that regorus gives as JSON, whose rules are `rules`."""
    packages = {rule.file: rule.package for rule in rules}
    for module in json.loads(modules):
        file, text = module["source"]["file"], module["source"]["contents"]
        package = packages.get(file)
        known = {rule.first_name for rule in rules if rule.package == package}
        content = text.encode()
        for tree in module["ast"]["rules"]:
            if "Spec" not in tree:
                continue
            conditions = {name for body in tree["Spec"]["bodies"] for name, _ in _used(body["query"])}
            bound = known | conditions | set(_imported(content, module["ast"]["imports"])) | set(_bound(content, tree))
            for name, span in _used(_values(tree["Spec"])):
                if name not in bound | _EVERYWHERE:
                    message = f"the variable `{name}` comes from nowhere"
                    yield problem_at(text, file, span["line"], span["col"], message)


def _values(rule: Mapping[str, Any]) -> Iterator[Any]:
    """What a rule gives: its value, its key, and the values of `else`."""
    ((_, head),) = rule["head"].items()
    yield from (head.get("assign"), head.get("key"), head["refr"].get("RefBrack", {}).get("index"))
    yield from (body["assign"] for body in rule["bodies"])


def _used(tree: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each variable with its place; the names of functions are none."""
    if isinstance(tree, dict):
        for kind, part in tree.items():
            if kind == "Var":
                yield part["value"], part["span"]
            elif kind != "fcn":
                yield from _used(part)
    elif tree is not None and not isinstance(tree, str | int | float):
        for part in tree:
            yield from _used(part)


def _bound(content: bytes, tree: Any) -> Iterator[str]:
    """What arguments, `some`, `every`, `:=`, `=`, indices and `walk` give a value to."""
    if isinstance(tree, list):
        for part in tree:
            yield from _bound(content, part)
    elif isinstance(tree, dict):
        for kind, part in tree.items():
            if kind in ("args", "index"):
                yield from (name for name, _ in _used(part))
            elif kind == "Call" and part["fcn"].get("Var", {}).get("value") == "walk":
                yield from (name for name, _ in _used(part["params"]))
            elif kind == "AssignExpr":
                sides = part["lhs"] if part["op"] == "ColEq" else [part["lhs"], part["rhs"]]
                yield from (name for name, _ in _used(sides))
            elif kind == "SomeIn":
                yield from (name for name, _ in _used([part["key"], part["value"]]))
            elif kind == "Every":
                yield from (_text(content, span) for span in (part["key"], part["value"]) if span)
            yield from _bound(content, part)


def _imported(content: bytes, imports: list[Mapping[str, Any]]) -> Iterator[str]:
    for each in imports:
        path = _text(content, each["refr"][next(iter(each["refr"]))]["span"])
        yield _text(content, each["as"]) if each.get("as") else path.rpartition(".")[2]


def _text(content: bytes, span: Mapping[str, Any]) -> str:
    return content[span["start"] : span["end"]].decode()
