"""What an agent may choose when it calls a tool: the JSON Schema that it is shown, and what it has chosen, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.errors import UsageError
from orchestrator.jsontypes import JsonObject, JsonValue, counted
from orchestrator.workflow.models.declared import WORDS, Argument, wrong_value
from orchestrator.workflow.models.tools import Tool
from orchestrator.workflow.problems import suggestion

_BOUNDS = {"minimum": "minimum", "maximum": "maximum", "max_length": "maxLength", "pattern": "pattern", "enum": "enum"}
"""The bounds of an argument, by their names in JSON Schema."""


def bind_arguments(name: str, tool: Tool, given: Mapping[str, JsonValue]) -> JsonObject:
    """Every argument of a call with its value. Raises UsageError with all that is wrong, for the agent to mend.

    Nothing is turned into another type, and nothing that was given is repeated.
    """
    wrong = [
        f"`{name}` has no argument `{str(key)[:40]}`; {suggestion(str(key), tool.call) or 'it has none'}"
        for key in given
        if key not in tool.call
    ]
    bound: dict[str, JsonValue] = {}
    for key, declared in tool.call.items():
        if key not in given:
            if declared.required:
                wrong.append(f"the argument `{key}` is missing: {bounds_words(declared)}")
            bound[key] = declared.default
            continue
        if problem := _wrong(declared, given[key]):
            wrong.append(f"the argument `{key}` is not right: {problem}")
        bound[key] = given[key]
    if wrong:
        raise UsageError("; ".join(wrong), hint="call it again with arguments as its schema says")
    return bound


def arguments_schema(tool: Tool) -> dict[str, Any]:
    """JSON Schema 2020-12 of the arguments of a call."""
    return {
        "type": "object",
        "properties": {name: _schema(declared) for name, declared in tool.call.items()},
        "required": [name for name, declared in tool.call.items() if declared.required],
        "additionalProperties": False,
    }


def bounds_words(declared: Argument) -> str:
    """`a whole number, from 1 to 50, 10 if not given`."""
    words = [WORDS[declared.type]]
    if declared.enum is not None:
        words.append(f"one of {', '.join(str(each) for each in declared.enum)}")
    low, high = declared.minimum, declared.maximum
    if low is not None or high is not None:
        words.append(" ".join([f"from {low}"] * (low is not None) + [f"to {high}"] * (high is not None)))
    if declared.type == "string" and declared.enum is None and declared.max_length is not None:
        words.append(f"at most {counted(declared.max_length, 'character')}")
    if declared.pattern is not None:
        words.append(f"matching {declared.pattern}")
    if not declared.required:
        words.append("optional" if declared.default is None else f"{declared.default} if not given")
    return ", ".join(words)


def _wrong(declared: Argument, value: JsonValue) -> str:
    if isinstance(value, str) and ("\0" in value or any("\ud800" <= char <= "\udfff" for char in value)):
        return "it has a character that no text may have"
    return wrong_value(declared, value)


def _schema(declared: Argument) -> dict[str, Any]:
    found: dict[str, Any] = {"type": declared.type}
    if declared.description:
        found["description"] = declared.description
    for field, name in _BOUNDS.items():
        bound = getattr(declared, field)
        if bound is not None and (field != "max_length" or declared.type == "string"):
            found[name] = bound
    if not declared.required and declared.default is not None:
        found["default"] = declared.default
    return found
