"""The inputs of a run: typed, complete, and secret where the workflow says so."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.errors import UsageError
from orchestrator.jsontypes import JsonValue
from orchestrator.secret import Secret
from orchestrator.workflow.models import Workflow
from orchestrator.workflow.problems import suggestion

_WORDS = {
    "string": "a text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a JSON list",
    "object": "a JSON object",
}
HIDDEN = "***"


def bind_inputs(
    workflow: Workflow, given: Mapping[str, JsonValue], *, from_text: bool = False, partial: bool = False
) -> dict[str, JsonValue | Secret]:
    """Every input of the workflow with its value. `from_text` reads texts as the declared type (`5`, `true`, JSON).
    With `partial` a required input that is not given is left out.

    Raises UsageError that names all that is unknown, missing or of the wrong type, and shows no value.
    """
    wrong = [
        f"there is no input `{name}`; {suggestion(name, workflow.inputs, otherwise='the workflow has none')}"
        for name in given
        if name not in workflow.inputs
    ]
    bound: dict[str, JsonValue | Secret] = {}
    for name, declared in workflow.inputs.items():
        if name not in given and declared.required:
            if partial:
                continue
            wrong.append(
                f"the input `{name}` is missing ({_WORDS[declared.type]}; {declared.description or 'required'})"
            )
            continue
        try:
            value = _typed(declared.type, given[name], from_text) if name in given else declared.default
            if declared.enum is not None and value not in declared.enum:
                raise ValueError(f"it is one of {', '.join(map(str, declared.enum))}")
        except ValueError as error:
            wrong.append(f"the input `{name}` is not right: {error}")
            continue
        bound[name] = Secret(value if isinstance(value, str) else json.dumps(value)) if declared.secret else value
    if wrong:
        raise UsageError("\n".join(wrong), hint="give inputs with --input NAME=VALUE or --inputs FILE")
    return bound


def public_inputs(workflow: Workflow, bound: Mapping[str, JsonValue | Secret]) -> dict[str, JsonValue]:
    """The inputs as policies, people and the ledger may see them."""
    return {name: HIDDEN if isinstance(value, Secret) else value for name, value in bound.items()}


def check_default(declared: Mapping[str, Any]) -> str:
    """What is wrong with the default of an input declaration, or an empty text."""
    if "default" not in declared:
        return ""
    kind, value = declared.get("type", "string"), declared["default"]
    if declared.get("secret") is True:
        return "a secret input has no default: a secret does not belong into the file"
    if kind in _WORDS and not _is(kind, value):
        return f"the default is not {_WORDS[kind]}"
    if isinstance(declared.get("enum"), list) and value not in declared["enum"]:
        return "the default is not one of `enum`"
    return ""


def check_scheduled(
    inputs: Mapping[str, Any], schedule: Mapping[str, Any]
) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """What is wrong with the inputs of a schedule: the path of each finding, its message and a hint."""
    given = schedule.get("inputs", {})
    if not isinstance(given, dict):
        return
    for name, value in given.items():
        path = ("schedule", "inputs", str(name))
        declared = inputs.get(name)
        if declared is None:
            yield path, f"there is no input `{name}`", suggestion(str(name), map(str, inputs))
        elif isinstance(declared, dict) and declared.get("secret") is True:
            yield path, f"the input `{name}` is secret", "a secret does not belong into the file: read it from Vault"
        elif isinstance(declared, dict) and (wrong := _wrong_value(declared, value)):
            yield path, f"the input `{name}` is not right: {wrong}", ""
    for name, declared in inputs.items():
        if isinstance(declared, dict) and "default" not in declared and name not in given:
            yield ("schedule",), f"scheduled runs need the input `{name}`", f"add `inputs: {{ {name}: ... }}`"


def _wrong_value(declared: Mapping[str, Any], value: Any) -> str:
    kind = declared.get("type", "string")
    if kind in _WORDS and not _is(kind, value):
        return f"expected {_WORDS[kind]}"
    if isinstance(declared.get("enum"), list) and value not in declared["enum"]:
        return "it is not one of `enum`"
    return ""


def _typed(kind: str, value: JsonValue, from_text: bool) -> JsonValue:
    if _is(kind, value):
        return value
    if not from_text or not isinstance(value, str):
        raise ValueError(f"expected {_WORDS[kind]}")
    try:
        read = json.loads(value)
    except ValueError:
        raise ValueError(f"expected {_WORDS[kind]}") from None
    if not _is(kind, read):
        raise ValueError(f"expected {_WORDS[kind]}")
    typed: JsonValue = read
    return typed


def _is(kind: str, value: Any) -> bool:
    match kind:
        case "string":
            return isinstance(value, str)
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool)
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "boolean":
            return isinstance(value, bool)
        case "array":
            return isinstance(value, list)
        case "object":
            return isinstance(value, dict)
    return False
