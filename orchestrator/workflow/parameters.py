"""What the language knows of actions: their parameters, and which grants these name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, get_args, get_origin

from pydantic import BaseModel

from orchestrator.workflow.source import Path, Source

_ANEW_HINT = (
    "an `exec` step takes it as one file (`credentials: { files: { NAME: GRANT } }`), a `python` step as "
    "`credentials`; else leave `on_expiry` out: then the step is ended before its credential"
)


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
            refers = getattr(mark, "refers", lambda text: True)
            if isinstance(value, str) and "${{" not in value and refers(value):
                anew = bool(getattr(mark, "anew", False)) and "." not in value
                yield GrantReference(path, value, mark.kinds, anew)
            return
        annotation = inner
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from _of_model(annotation, value, path)
    elif isinstance(value, dict) and isinstance(origin := get_origin(annotation), type) and issubclass(origin, Mapping):
        for key, item in value.items():
            yield from _of_value(get_args(annotation)[1], item, (*path, key))
    else:
        for member in get_args(annotation):
            if member is not type(None) and not isinstance(value, list):
                yield from _of_value(member, value, path)


def check_reissue(
    source: Source, base: Path, step: Mapping[str, Any], used: Sequence[GrantReference], *, otherwise: bool
) -> None:
    """Report every grant of a step that is to be issued anew and cannot be handed to the action under way.

    `otherwise` says what holds for grants that no parameter names.
    """
    grants = step.get("grants")
    for name, grant in grants.items() if isinstance(grants, dict) else ():
        if not isinstance(grant, dict) or grant.get("on_expiry") != "reissue":
            continue
        own = [reference for reference in used if reference.grant == name]
        once = [reference for reference in own if not reference.anew]
        place: Path = (*base, "grants", name, "on_expiry")
        if once:
            where = ".".join(str(part) for part in ("with", *once[0].path))
            source.report(place, f"`{where}` takes `{once[0].text}` once, when the step begins", _ANEW_HINT)
        elif not own and not otherwise:
            source.report(place, f"{step.get('action')} takes `{name}` once, when the step begins", _ANEW_HINT)
