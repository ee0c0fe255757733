"""What pydantic finds wrong with the shape of a workflow, said in plain words and at its place in the file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from orchestrator.grants.models import Grant
from orchestrator.workflow.models.workflow import Workflow
from orchestrator.workflow.problems import suggestion
from orchestrator.workflow.source import Path, Source

_GRANTS: dict[str, type[BaseModel]] = {
    get_args(model.model_fields["kind"].annotation)[0]: model for model in get_args(get_args(Grant)[0])
}
"""The kinds of grant by what `kind` says."""
_WORDS = {
    "string_type": "expected a text",
    "int_type": "expected a whole number",
    "int_parsing": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_type": "expected a number",
    "float_parsing": "expected a number",
    "bool_type": "expected true or false",
    "bool_parsing": "expected true or false",
    "list_type": "expected a list",
    "tuple_type": "expected a list",
    "dict_type": "expected a map",
    "model_type": "expected a map",
    "model_attributes_type": "expected a map",
    "missing": "is missing",
}
_BOUNDS = {
    "greater_than": "expected more than {gt}",
    "greater_than_equal": "expected {ge} or more",
    "less_than": "expected less than {lt}",
    "less_than_equal": "expected {le} or less",
    "too_short": "expected at least {min_length} item{s}",
    "too_long": "expected at most {max_length} item{s}",
    "string_too_short": "expected at least {min_length} character{s}",
    "string_too_long": "expected at most {max_length} character{s}",
    "literal_error": "expected {expected}",
    "extra_forbidden": "there is no such key",
}
_KINDS = {str: "a text", bool: "true or false", int: "a whole number", float: "a number", list: "a list", dict: "a map"}


def shape_problems(source: Source) -> None:
    """What is better said before the models see it: the file is not a map, or a grant has no kind."""
    if not isinstance(source.data, dict):
        source.report((), "a workflow is a map with `version`, `name`, `agent` and `steps`")


def report_errors(source: Source, error: ValidationError, base: Path, *, model: type[BaseModel] = Workflow) -> None:
    """Add each of pydantic's findings below `base` as a problem; expressions are left to the run."""
    for finding in error.errors(include_url=False):
        if source.full:
            return
        path = (*base, *_in_file(finding["loc"], value_at(source.data, base)))
        kind = finding["type"]
        if kind == "extra_forbidden":
            _unknown_key(source, path, model if base else None)
        elif kind == "missing":
            source.report(path[:-1], f"`{path[-1]}` is missing here", key=True)
        elif kind in ("union_tag_invalid", "union_tag_not_found"):
            _grant_kind(source, path)
        elif path and path[-1] == "[key]":
            source.report(path[:-1], f"`{path[-2]}` cannot be a name", _pattern_hint(finding), key=True)
        else:
            source.report(path, message_of(finding, value_at(source.data, path)), _hint(finding))


def _unknown_key(source: Source, path: Path, model: type[BaseModel] | None) -> None:
    known = _fields(model) if model and len(path) < 5 else _known_keys(source.data, path[:-1])
    if model:
        known = _fields(model)
    source.report(path, f"unknown key `{path[-1]}`", suggestion(str(path[-1]), known), key=True)


def _grant_kind(source: Source, path: Path) -> None:
    grant = value_at(source.data, path)
    given = grant.get("kind") if isinstance(grant, dict) else None
    if given is None:
        source.report(path, "a grant needs a `kind`", f"one of {', '.join(_GRANTS)}")
    else:
        hint = suggestion(str(given), _GRANTS, otherwise=f"one of {', '.join(_GRANTS)}")
        source.report((*path, "kind"), f"there is no kind of grant `{given}`", hint)


def message_of(finding: Mapping[str, Any], value: Any, *, shown: bool = True) -> str:
    """One of pydantic's findings in plain words. `shown`: the value stands in a file, and may be told."""
    kind = finding["type"]
    if kind == "missing":
        return "it is missing"
    if kind in _WORDS:
        return f"{_WORDS[kind]}, got {_KINDS.get(type(value), 'nothing')}"
    if kind in _BOUNDS:
        limits = finding.get("ctx") or {}
        plural = "" if 1 in (limits.get("min_length"), limits.get("max_length")) else "s"
        return _BOUNDS[kind].format_map({**limits, "s": plural})
    if kind in ("value_error", "assertion_error"):
        return str(finding["ctx"]["error"])
    if kind == "string_pattern_mismatch":
        return f"`{value}` is not allowed here" if shown else f"the text does not match {finding['ctx']['pattern']}"
    return str(finding["msg"])


def _hint(finding: Mapping[str, Any]) -> str:
    """What to do about a finding, as far as its kind says."""
    if finding["loc"] == ("version",):
        return "this is version 1 of the language, whatever version of the workflow it is"
    if finding["type"] == "string_type" and isinstance(finding.get("input"), bool | int | float):
        return "put it in quotes"
    return _pattern_hint(finding)


_NAMES = re.compile(r"\^\[a-z\]\[a-z0-9_(-?)\]\{0,(\d+)\}\$")
"""The pattern of those patterns that names have."""


def _pattern_hint(finding: Mapping[str, Any]) -> str:
    if finding["type"] != "string_pattern_mismatch":
        return ""
    pattern = finding["ctx"]["pattern"]
    if name := _NAMES.fullmatch(pattern):
        letters = (
            "lower-case letters, digits, underscores and hyphens"
            if name[1]
            else ("lower-case letters, digits and underscores")
        )
        return f"at most {int(name[2]) + 1} {letters}, beginning with a letter"
    return f"it must match {pattern}"


def _in_file(location: Iterable[str | int], data: Any) -> Path:
    """The location without the parts that pydantic adds for the members of unions."""
    path: list[str | int] = []
    for part in location:
        if part == "[key]":
            path.append(part)
        elif isinstance(data, dict):
            if part not in data and isinstance(part, str) and data.get("kind") == part:
                continue
            path.append(part)
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            path.append(part)
            data = data[part]
    return tuple(path)


def value_at(data: Any, path: Path) -> Any:
    """What is at a place of parsed YAML, or None where there is no such place."""
    for part in path:
        if isinstance(data, dict):
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            return None
    return data


def _known_keys(data: Any, path: Path) -> list[str]:
    """The keys that the models know at this place of the workflow."""
    model: Any = Workflow
    here = data
    for part in path:
        here = here.get(part) if isinstance(here, dict) else None
        model = _next_model(model, part, here)
        if model is None:
            return []
    return _fields(model)


def _next_model(model: Any, part: str | int, value: Any) -> Any:
    if isinstance(model, tuple):
        kind = value.get("kind") if isinstance(value, dict) else None
        member = model[1]
        return _GRANTS.get(str(kind)) if member == "grant" else member
    for name, info in model.model_fields.items():
        if _alias(name, info) == part:
            return _inner(info.annotation)
    return None


def _inner(annotation: Any) -> Any:
    """The model behind an annotation; for a map of models `("map", model)`."""
    if get_origin(annotation) is Annotated:
        return _inner(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        members = [_inner(member) for member in get_args(annotation) if member is not type(None)]
        return members[0] if len(members) == 1 else "grant"
    if get_origin(annotation) is dict:
        return ("map", _inner(get_args(annotation)[1]))
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _fields(model: Any) -> list[str]:
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return []
    return [_alias(name, info) for name, info in model.model_fields.items()]


def _alias(name: str, info: Any) -> str:
    return str(info.serialization_alias or name)
