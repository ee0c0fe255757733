"""Which grants a step's parameters name, found by the marks that an action puts on its fields."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel

from orchestrator.workflow.source import Path


def grant_references(model: type[BaseModel], given: Any) -> list[tuple[Path, str, tuple[str, ...]]]:
    """Path, text (`grant` or `grant.field`) and allowed kinds of every parameter that names a grant."""
    return list(_of_model(model, given, ()))


def _of_model(model: type[BaseModel], given: Any, path: Path) -> Iterator[tuple[Path, str, tuple[str, ...]]]:
    if not isinstance(given, dict):
        return
    for name, info in model.model_fields.items():
        key = info.alias or name
        if key in given:
            annotation = Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation
            yield from _of_value(annotation, given[key], (*path, key))


def _of_value(annotation: Any, value: Any, path: Path) -> Iterator[tuple[Path, str, tuple[str, ...]]]:
    if get_origin(annotation) is Annotated:
        inner, *marks = get_args(annotation)
        kinds = next((mark.kinds for mark in marks if isinstance(getattr(mark, "kinds", None), tuple)), None)
        if kinds is not None:
            if isinstance(value, str) and "${{" not in value:
                yield path, value, kinds
            return
        annotation = inner
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from _of_model(annotation, value, path)
    elif isinstance(value, dict) and get_origin(annotation) is not None and len(get_args(annotation)) == 2:
        for key, item in value.items():
            yield from _of_value(get_args(annotation)[1], item, (*path, key))
    else:
        for member in get_args(annotation):
            if member is not type(None) and not isinstance(value, list):
                yield from _of_value(member, value, path)
