"""What the language knows of actions: their parameters, and which grants these name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, get_args, get_origin

from pydantic import BaseModel

from orchestrator.workflow.source import Path


class ActionCatalog(Protocol):
    """The installed actions: their names, and the model of each one's parameters."""

    def names(self) -> Sequence[str]:
        """Every name, sorted."""

    def params_of(self, name: str) -> type[BaseModel] | None:
        """The model, whose fields are marked where they name grants; None for an action that is not installed."""


@dataclass(frozen=True, slots=True)
class GrantReference:
    """A parameter that names a grant: where it is, its text (`grant` or `grant.field`) and what it may be.

    `anew`: what is issued anew for the grant reaches the action while it runs.
    """

    path: Path
    text: str
    kinds: tuple[str, ...]
    anew: bool

    @property
    def grant(self) -> str:
        """The name of the grant."""
        return self.text.partition(".")[0]


def grant_references(model: type[BaseModel], given: Any) -> list[GrantReference]:
    """Every parameter that names a grant."""
    return list(_of_model(model, given, ()))


def _of_model(model: type[BaseModel], given: Any, path: Path) -> Iterator[GrantReference]:
    if not isinstance(given, dict):
        return
    for name, info in model.model_fields.items():
        key = info.alias or name
        if key in given:
            annotation = Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation
            yield from _of_value(annotation, given[key], (*path, key))


def _of_value(annotation: Any, value: Any, path: Path) -> Iterator[GrantReference]:
    if get_origin(annotation) is Annotated:
        inner, *marks = get_args(annotation)
        mark = next((mark for mark in marks if isinstance(getattr(mark, "kinds", None), tuple)), None)
        if mark is not None:
            if isinstance(value, str) and "${{" not in value:
                anew = bool(getattr(mark, "anew", False)) and "." not in value
                yield GrantReference(path, value, mark.kinds, anew)
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
