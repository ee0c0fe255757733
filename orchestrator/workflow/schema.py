"""The JSON Schema of workflow files, for completion in editors; made from the models themselves."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from orchestrator.workflow.models.workflow import Workflow
from orchestrator.workflow.tools.checks import OF_STEPS

if TYPE_CHECKING:
    from orchestrator.workflow.parameters import ActionCatalog

NO_EXPRESSIONS = "no expressions"
"""The comment on a model of an action's in which no expression may be."""

_EXPRESSION = {"type": "string", "pattern": r"\$\{\{"}


def json_schema(actions: ActionCatalog) -> dict[str, Any]:
    """JSON Schema 2020-12 of a workflow file, with the parameters of every known action."""
    schema = Workflow.model_json_schema(by_alias=True, mode="validation")
    definitions = schema["$defs"]
    names = sorted(actions.names())
    step, tool = definitions["Step"], definitions["Tool"]
    step["properties"]["action"]["enum"] = names
    tool["properties"]["action"]["anyOf"] = [{"enum": names, "type": "string"}, {"type": "null"}]
    tool["oneOf"] = [{"required": ["action"]}, {"required": ["hand_over"]}]
    step["allOf"] = []
    for name in names:
        model = actions.params_of(name)
        if model is None:
            continue
        parameters = model.model_json_schema(by_alias=True, ref_template="#/$defs/" + name + "/$defs/{model}")
        literal: frozenset[str] = getattr(model, "literal", frozenset())
        definitions[name] = _with_expressions(parameters, literal)
        step["allOf"].append(
            {
                "if": {"properties": {"action": {"const": name}}, "required": ["action"]},
                "then": {"properties": {"with": {"$ref": f"#/$defs/{name}"}}},
            }
        )
    tool["allOf"] = step["allOf"]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Workflow of the credential orchestrator",
        "oneOf": [
            {"required": ["agent", "steps"], "properties": dict.fromkeys(("tools", "task"), False)},
            {"required": ["tools"], "properties": dict.fromkeys(("steps", *OF_STEPS), False)},
        ],
        **{key: value for key, value in schema.items() if key != "title"},
    }


def _with_expressions(schema: dict[str, Any], literal: Collection[str] = ()) -> dict[str, Any]:
    """Any parameter may be given by an expression instead, except those that are `literal`."""
    if schema.get("$comment") == NO_EXPRESSIONS:
        return schema
    changed = dict(schema)
    if "properties" in changed:
        changed["properties"] = {
            name: part if name in literal else _or_expression(part) for name, part in changed["properties"].items()
        }
    if "$defs" in changed:
        changed["$defs"] = {name: _with_expressions(part) for name, part in changed["$defs"].items()}
    return changed


def _or_expression(part: Any) -> dict[str, Any]:
    described = {key: part[key] for key in ("title", "description", "default") if key in part}
    return {**described, "anyOf": [{key: value for key, value in part.items() if key not in described}, _EXPRESSION]}
