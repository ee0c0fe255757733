"""What the language knows of actions: their parameters, which grants these name, and what their output may have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from orchestrator.jsontypes import text_of
from orchestrator.workflow.problems import suggestion
from orchestrator.workflow.shape import report_errors
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


def check_action(source: Source, base: Path, step: Mapping[str, Any], actions: ActionCatalog) -> None:
    """Report what is certainly wrong with the action of a step or tool, whatever its expressions come to."""
    name = step.get("action")
    if not isinstance(name, str):
        return
    model = actions.params_of(name)
    if model is None:
        source.report((*base, "action"), f"there is no action `{name}`", suggestion(name, actions.names()))
        return
    given = step.get("with", {})
    if isinstance(given, dict):
        try:
            model.model_validate(given)
        except ValidationError as error:
            literal = [finding for finding in error.errors(include_url=False) if not _dynamic(given, finding["loc"])]
            if literal:
                known = ValidationError.from_exception_data(model.__name__, [_again(finding) for finding in literal])
                report_errors(source, known, (*base, "with"), model=model)
        used = grant_references(model, given)
        _grants(source, base, step, used)
        _reissue(source, base, step, used, otherwise=bool(getattr(model, "takes_new_credentials", False)))
        _outputs(source, base, step, model)
        for path, message, hint in getattr(model, "certainly_wrong", _nothing)(step):
            source.report((*base, *path), message, hint, key=path in (("with",), ("grants",)))


_SAMPLES: Mapping[str, Any] = {
    "LIST": [],
    "MAP": {},
    "STRING": "",
    "INT": 1,
    "DOUBLE": 0.5,
    "BOOL": True,
    "NULL": None,
}
_NAMES = {"LIST": "a list", "MAP": "a map", "STRING": "a text", "INT": "a number", "DOUBLE": "a number", "NULL": "null"}
_WANTED = {
    "string_type": ("a text", "let the expression pick a single text or number from it"),
    "list_type": ("a list", "write `[value]`, or let the expression give a list"),
    "dict_type": ("a map", "write `{ name: value }`, or let the expression give a map"),
}
"""What pydantic finds wrong that holds for every value of a kind, and what to do."""


def check_kinds(
    source: Source, base: Path, part: Mapping[str, Any], actions: ActionCatalog, kinds: Mapping[Path, str]
) -> None:
    """Report each expression whose results can only be of another kind than the parameter takes.

    `kinds` are those of whole values by their places. A number is taken for a text (`validated`).
    """
    name, given = part.get("action"), part.get("with")
    model = actions.params_of(name) if isinstance(name, str) else None
    own = {path[3:]: kind for path, kind in kinds.items() if path[:3] == (*base, "with") and kind in _SAMPLES}
    if model is None or not own or not isinstance(given, dict):
        return
    try:
        model.model_validate(_with_samples(given, own, ()))
    except ValidationError as error:
        for finding in error.errors(include_url=False):
            kind = own.get(finding["loc"])
            if kind is None or finding["type"] not in _WANTED:
                continue
            if finding["type"] == "string_type" and kind not in ("LIST", "MAP", "NULL"):
                continue
            wanted, hint = _WANTED[finding["type"]]
            what = _NAMES.get(kind, "a truth value")
            source.report((*base, "with", *finding["loc"]), f"expected {wanted}; the expression gives {what}", hint)


def _with_samples(value: Any, kinds: Mapping[Path, str], at: Path) -> Any:
    """The value with one of its kind in the place of each expression whose kind is known."""
    if at in kinds:
        return _SAMPLES[kinds[at]]
    if isinstance(value, dict):
        return {key: _with_samples(item, kinds, (*at, key)) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_samples(item, kinds, (*at, index)) for index, item in enumerate(value)]
    return value


P = TypeVar("P", bound=BaseModel)


def validated(model: type[P], values: Mapping[str, Any], *, directory: str = "") -> P:
    """The parameters of an action, their expressions evaluated. Raises ValidationError.

    `directory` is where the workflow's file is: relative paths begin there (`orchestrator.actions.base.LocalPath`).

    Where a text is wanted, a number or a truth value becomes the text that it is inside of a longer one: `/tickets/${{
    inputs.id }}` and `${{ inputs.id }}` have the same digits. What is written in the file itself was held against the
    types before.
    """
    context = {"directory": directory}
    try:
        return model.model_validate(values, context=context)
    except ValidationError as error:
        wanted = [each["loc"] for each in error.errors(include_url=False) if each["type"] == "string_type"]
        if not wanted:
            raise
    return model.model_validate(_with_texts(values, wanted, ()), context=context)


def _with_texts(value: Any, wanted: Sequence[tuple[str | int, ...]], at: tuple[str | int, ...]) -> Any:
    """The value with what stands at the wanted places as text, where it has one."""
    if at in wanted and isinstance(value, bool | int | float):
        return text_of(value)
    if isinstance(value, Mapping):
        return {key: _with_texts(item, wanted, (*at, key)) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_texts(item, wanted, (*at, index)) for index, item in enumerate(value)]
    return value


def _nothing(step: Mapping[str, Any]) -> Iterator[tuple[Path, str, str]]:
    """Of a model that says no more than its types do."""
    yield from ()


def _outputs(source: Source, base: Path, step: Mapping[str, Any], model: type[BaseModel]) -> None:
    """Each key of `outputs` that the output of the action cannot have."""
    keys, wanted = getattr(model, "output_keys", lambda given: None)(_map(step.get("with"))), step.get("outputs")
    if keys is None:
        return
    for index, key in enumerate(wanted if isinstance(wanted, list) else ()):
        if key not in keys:
            source.report(
                (*base, "outputs", index),
                f"the output of {step.get('action')} has no `{key}` here",
                suggestion(str(key), keys),
            )


def _grants(source: Source, base: Path, step: Mapping[str, Any], used: list[GrantReference]) -> None:
    declared = _map(step.get("grants"))
    for reference in used:
        name, path, kinds = reference.grant, reference.path, reference.kinds
        kind = _map(declared.get(name)).get("kind")
        if name not in declared:
            hint = suggestion(name, declared, otherwise="declare it in `grants` of the step")
            source.report((*base, "with", *path), f"the step has no grant `{name}`", hint)
        elif isinstance(kind, str) and kind not in kinds:
            source.report(
                (*base, "with", *path), f"the grant `{name}` is of kind {kind}", f"this takes: {', '.join(kinds)}"
            )


def _again(finding: Any) -> Any:
    """An error of pydantic's in the form in which one is raised."""
    from pydantic_core import PydanticCustomError

    context = finding.get("ctx") or {}
    if finding["type"] in ("value_error", "assertion_error"):
        problem: Any = PydanticCustomError(
            "value_error", "{error}", {"error": str(context.get("error", finding["msg"]))}
        )
        return {"type": problem, "loc": finding["loc"], "input": None}
    again = {"type": finding["type"], "loc": finding["loc"], "input": finding.get("input")}
    return {**again, "ctx": context} if context else again


def _dynamic(given: Any, location: tuple[str | int, ...]) -> bool:
    """Whether the value at a location, or anything it lies in or holds, comes from an expression."""
    value = given
    for part in location:
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
        else:
            return isinstance(value, str) and "${{" in value
    return _holds_expression(value)


def _holds_expression(value: Any) -> bool:
    if isinstance(value, str):
        return "${{" in value
    if isinstance(value, dict):
        return any(_holds_expression(item) for item in value.values())
    return isinstance(value, list) and any(_holds_expression(item) for item in value)


def _reissue(
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


def _map(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
