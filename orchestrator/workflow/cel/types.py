"""The types of expressions: what is declared of inputs and known of outputs, held against what is done with them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from orchestrator.errors import InvalidExpression
from orchestrator.workflow.cel.engine import Checked, check
from orchestrator.workflow.cel.failures import NOT_CEL
from orchestrator.workflow.cel.template import PATH, asked_for, references
from orchestrator.workflow.models.steps import ITEMS
from orchestrator.workflow.parameters import ActionCatalog
from orchestrator.workflow.source import Path, Source

_INPUTS = {
    "string": "string",
    "integer": "int",
    "number": "double",
    "boolean": "bool",
    "array": "list",
    "object": "map",
}
_NAMES = {"string": "STRING", "int": "INT", "double": "DOUBLE", "bool": "BOOL", "list": "LIST", "maps": "LIST"} | {
    "map": "MAP"
}
"""The names of these types in the words of the engine."""


class Use(Enum):
    """What becomes of the result of an expression."""

    VALUE = "value"
    TEXT = "text"
    CONDITION = "condition"


@dataclass(frozen=True, slots=True)
class Used:
    """An expression at its place in the file."""

    path: Path
    cel: str
    use: Use
    faulty: bool = False
    """Something is wrong with what it refers to, and was reported."""


def check_types(source: Source, used: list[Used], actions: ActionCatalog) -> dict[Path, str]:
    """Report each expression that is not CEL, or that does what its types do not allow.

    The kinds of the others, such as `LIST`, by their places, as far as they are known and the expression is the value.
    """
    if not used:
        return {}
    texts = list(dict.fromkeys(each.cel for each in used))
    types = dict(_types(source.data, {each.cel for each in used if not each.faulty}, actions))
    try:
        found = _checked(texts, types)
    except InvalidExpression as error:
        source.report((), error.message, error.hint or "")
        return {}
    for each in used:
        checked = found[each.cel]
        if each.faulty and NOT_CEL not in checked.message:
            continue
        if checked.message:
            source.report(each.path, checked.message, checked.hint)
        elif each.use is Use.CONDITION and checked.type not in ("BOOL", "DYN"):
            source.report(
                each.path, f"the condition `{each.cel}` is neither true nor false", "compare it with something"
            )
        elif each.use is Use.TEXT and checked.type.startswith(("LIST", "MAP", "NULL", "BYTES")):
            kind = checked.type.partition("<")[0].lower()
            source.report(
                each.path,
                f"`{each.cel}` gives a {kind}, which cannot stand inside a text",
                "let the expression be the whole value, or pick a single text or number from it",
            )
    return {
        each.path: found[each.cel].type.partition("<")[0]
        for each in used
        if each.use is Use.VALUE and not each.faulty and not found[each.cel].message
    }


def _checked(texts: list[str], types: Mapping[str, str]) -> dict[str, Checked]:
    """Each expression with what is found of it; one that only names a value is right, and needs no engine."""
    found = {cel: Checked(_NAMES.get(types.get(cel, ""), "DYN")) for cel in texts if PATH.fullmatch(cel)}
    groups: dict[frozenset[str], list[str]] = {}
    for cel in texts:
        if cel not in found:
            groups.setdefault(frozenset(asked_for(cel) & types.keys()), []).append(cel)
    # Where `has(inputs.n)` asks for a path as a whole, the engine must not take that path for a variable.
    for untyped, group in groups.items():
        found |= _engine_finds(group, {path: kind for path, kind in types.items() if path not in untyped})
    return found


def _engine_finds(group: list[str], types: Mapping[str, str]) -> dict[str, Checked]:
    found = dict(zip(group, check(group, types), strict=True))
    # A `number` may be whole or not. What is right for one of them is left to the run.
    numbers = {path: "int" for path, kind in types.items() if kind == "double"}
    again = [cel for cel in group if numbers and found[cel].message]
    if again:
        either = zip(again, check(again, {**types, **numbers}), strict=True)
        found |= {cel: checked for cel, checked in either if not checked.message}
    return found


def _types(data: Mapping[str, Any], texts: Iterable[str], actions: ActionCatalog) -> Iterator[tuple[str, str]]:
    """The types of the paths that expressions refer to, as far as they are known."""
    inputs, steps = data.get("inputs"), data.get("steps")
    seen = {reference.path for cel in texts for reference in references(cel)}
    for path in sorted(seen):
        match path:
            case ("inputs", name, *_):
                declared = inputs.get(name) if isinstance(inputs, dict) else None
                kind = _INPUTS.get(str(declared.get("type", "string"))) if isinstance(declared, dict) else None
                shown = f"inputs.{name}"
            case ("task", name, *_):
                kind, shown = "string", f"task.{name}"
            case ("run", "id" | "trigger" | "started" as name, *_):
                kind, shown = "string", f"run.{name}"
            case ("workflow", "name" | "dir" as name, *_):
                kind, shown = "string", f"workflow.{name}"
            case ("step", "id" | "attempt" | "index" as name, *_):
                kind, shown = "string" if name == "id" else "int", f"step.{name}"
            case ("endpoints", name, *_):
                kind, shown = "string", f"endpoints.{name}"
            case ("steps", step, "state" | "error" as name, *_):
                kind, shown = "string", f"steps.{step}.{name}"
            case ("steps", step, "output", key, *_):
                kind, shown = _output(steps, step, key, actions), f"steps.{step}.output.{key}"
            case _:
                continue
        if kind is not None and all(part.isidentifier() for part in shown.split(".")):
            yield shown, kind


def _output(steps: Any, step: str, key: str, actions: ActionCatalog) -> str | None:
    declared = steps.get(step) if isinstance(steps, dict) else None
    if isinstance(declared, dict) and "for_each" in declared:
        return "list" if key == ITEMS else None
    action = declared.get("action") if isinstance(declared, dict) else None
    model = actions.params_of(action) if isinstance(action, str) else None
    known: Mapping[str, str] = getattr(model, "output_types", {})
    return known.get(key)
