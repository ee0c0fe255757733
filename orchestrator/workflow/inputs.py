"""The inputs of a run: typed, complete, and secret where the workflow says so."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.errors import UsageError
from orchestrator.jsontypes import JsonValue
from orchestrator.secret import Secret
from orchestrator.workflow.models.declared import WORDS, Argument, Declared, Input, wrong_value
from orchestrator.workflow.models.workflow import Workflow
from orchestrator.workflow.problems import suggestion

HIDDEN = "***"


def bind_inputs(
    workflow: Workflow, given: Mapping[str, JsonValue], *, from_text: bool = False, partial: bool = False
) -> dict[str, JsonValue | Secret]:
    """Every input of the workflow with its value. `from_text` reads texts as the declared type (`5`, `true`, JSON).
    With `partial` a required input that is not given is left out.

    Raises UsageError that names all that is unknown, missing or of the wrong type, and shows no value.
    """
    wrong = [
        f"there is no input `{name}`; {suggestion(name, workflow.inputs) or 'the workflow has none'}"
        for name in given
        if name not in workflow.inputs
    ]
    bound: dict[str, JsonValue | Secret] = {}
    for name, declared in workflow.inputs.items():
        if name not in given and declared.required:
            if partial:
                continue
            wrong.append(
                f"the input `{name}` is missing ({WORDS[declared.type]}; {declared.description or 'required'})"
            )
            continue
        try:
            value = _typed(declared, given[name], from_text) if name in given else declared.default
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


def wrong_default(declared: Declared) -> str:
    """What is wrong with the default of a declaration, or an empty text. None stands for no value at all."""
    if declared.required:
        return ""
    if isinstance(declared, Input) and declared.secret:
        return "a secret input has no default: a secret does not belong into the file"
    if isinstance(declared, Argument) and declared.default is None:
        return ""
    wrong = wrong_value(declared, declared.default)
    return f"the default is not right: {wrong}" if wrong else ""


def check_scheduled(
    inputs: Mapping[str, Input], schedule: Mapping[str, Any]
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
        elif declared.secret:
            yield path, f"the input `{name}` is secret", "a secret does not belong into the file: read it from Vault"
        elif wrong := wrong_value(declared, value):
            yield path, f"the input `{name}` is not right: {wrong}", ""
    for name, declared in inputs.items():
        if declared.required and name not in given:
            yield ("schedule",), f"scheduled runs need the input `{name}`", f"add `inputs: {{ {name}: ... }}`"


def _typed(declared: Input, value: JsonValue, from_text: bool) -> JsonValue:
    """The value, read from its text where it is one and the type is another. Raises ValueError for a wrong one."""
    if from_text and isinstance(value, str) and declared.type != "string":
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError(f"expected {WORDS[declared.type]}") from None
    if wrong := wrong_value(declared, value):
        raise ValueError(wrong)
    return value
