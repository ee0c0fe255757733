"""JSON Schemas of pydantic's as tables: keys, types, defaults, bounds and what they mean."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tools.reference.markdown import code, page, paragraphs, prose, slug, table

Schema = Mapping[str, Any]

_NOTHING = {"type": "null"}
_BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "more than {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "less than {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {}",
    "maxItems": "at most {}",
    "pattern": "matches {}",
}
_TYPES = {
    "string": "text",
    "integer": "integer",
    "number": "number",
    "boolean": "true or false",
    "object": "map",
    "array": "list",
    "null": "null",
}


def sections(name: str, schema: Schema, level: int = 2, *, without: frozenset[str] = frozenset()) -> str:
    """A section for the schema, and one for each model that it refers to, in the order in which they are met.

    A section is headed by the model's name, that of a grant by its kind. `without` are models that have a page of
    their own.
    """
    definitions = schema.get("$defs", {})
    written: list[str] = []
    waiting, seen = [(name, schema)], set(without)
    while waiting:
        title, part = waiting.pop(0)
        written.append(section(title, part, definitions, level))
        for other in referred(part):
            if other not in seen and definitions[other].get("properties"):
                seen.add(other)
                waiting.append((heading(other, definitions[other]), definitions[other]))
    return page(*written)


def section(title: str, part: Schema, definitions: Schema, level: int) -> str:
    """One model: its docstring, and its keys."""
    return page(f"{'#' * level} {title}", paragraphs(part.get("description", "")), keys(part, definitions))


def keys(part: Schema, definitions: Schema) -> str:
    """The table of a model's keys."""
    required = set(part.get("required", ()))
    rows = [_row(name, each, definitions, name in required) for name, each in part.get("properties", {}).items()]
    return table(("key", "type", "default", "meaning"), rows)


def heading(name: str, part: Schema) -> str:
    """What a model is called on its page."""
    kind = part.get("properties", {}).get("kind", {}).get("const")
    return f"Grant: {kind}" if kind else name


def referred(part: Any) -> Iterator[str]:
    """The models that a schema refers to, by name, in their order."""
    if isinstance(part, Mapping):
        if "$ref" in part:
            yield _name(part)
        for key, inner in part.items():
            if key not in ("$defs", "discriminator"):
                yield from referred(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from referred(inner)


def type_of(part: Schema, definitions: Schema) -> str:
    """The type in words, with its bounds."""
    if "$ref" in part:
        name = _name(part)
        target = definitions.get(name, {})
        if target.get("properties"):
            shown = heading(name, target)
            return f"[{shown}](#{slug(shown)})"
        return type_of(target, definitions) if target else "any"
    if "const" in part:
        return code(_json(part["const"]))
    if "enum" in part:
        return ", ".join(code(_json(each)) for each in part["enum"])
    for combined in ("anyOf", "oneOf"):
        if combined in part:
            kinds = [type_of(each, definitions) for each in part[combined] if each != _NOTHING]
            return " or ".join(dict.fromkeys(kinds if len(kinds) == 1 else map(_one, kinds)))
    bounds = [_bound(key, part[key]) for key in _BOUNDS if key in part]
    return "; ".join([_plain_type(part, definitions), *bounds])


def default_of(part: Schema, *, required: bool) -> str:
    """The default as it would be written; `required` where there is none."""
    if required:
        return "required"
    value = part.get("default")
    return "" if value in (None, "") else code(_json(value))


def _row(name: str, part: Schema, definitions: Schema, required: bool) -> tuple[str, ...]:
    said = part.get("description") or _of_the_model(part, definitions)
    examples = [f"Example: {code(_json(each))}." for each in part.get("examples", ()) if not _is_duration(part)]
    meaning = " ".join([prose(said), *examples])
    return code(name), type_of(part, definitions), default_of(part, required=required), meaning


def _of_the_model(part: Schema, definitions: Schema) -> str:
    """The first sentence of the one model that a key without a description holds."""
    models = list(dict.fromkeys(referred(part)))
    return definitions.get(models[0], {}).get("description", "").split("\n\n")[0] if len(models) == 1 else ""


def _plain_type(part: Schema, definitions: Schema) -> str:
    kind = part.get("type")
    if _is_duration(part):
        return "duration"
    if kind == "array":
        inner = part.get("items", {})
        return f"list of {_one(type_of(inner, definitions))}" if inner else "list"
    if kind == "object":
        values = [*part.get("patternProperties", {}).values(), part.get("additionalProperties")]
        inner = next((each for each in values if isinstance(each, Mapping)), None)
        return f"map of {_one(type_of(inner, definitions))}" if inner else "map"
    if part.get("format") == "password":
        return "text (secret)"
    if part.get("format") == "path":
        return "path"
    return _TYPES.get(kind, "any") if isinstance(kind, str) else "any"


def _one(kind: str) -> str:
    """A type inside of another, with its bounds in brackets."""
    name, mark, bounds = kind.partition("; ")
    return f"{name} ({bounds})" if mark else kind


def _is_duration(part: Schema) -> bool:
    return part.get("type") == ["string", "integer"] and "90s" in part.get("examples", ())


def _bound(key: str, value: Any) -> str:
    words = _BOUNDS[key].format(code(value) if key == "pattern" else value)
    return words.removesuffix("s") if value == 1 and words.endswith("characters") else words


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _name(part: Schema) -> str:
    return str(part["$ref"]).rpartition("/")[2]
