"""Obligations as the AuthZEN Obligations Profile 1.0 (draft 1) writes them, read as ours.

`{"id", "type", "properties"}`. Of the type `notification` `to`, `body` and `topic` become a notice. The type `custom`
is agreed upon with a decision point: `{"name": "max_ttl", "value": 120}` in its `properties` is the member `max_ttl` of
our `obligations`, and so for each of them; anything beside the two is not understood. No other type is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, StrictStr, TypeAdapter, ValidationError

from orchestrator.policy.obligations import SUPPORTED, Obligations, ObligationsDocument

TYPES = ("notification", "custom")
"""The types of obligations that can be carried out."""

MAX_OBLIGATIONS = 50
"""How many of one answer are looked at; more are not understood."""

_OURS: TypeAdapter[ObligationsDocument] = TypeAdapter(ObligationsDocument)


class _Obligation(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True)

    id: StrictStr
    type: StrictStr
    properties: dict[str, object]


class _Notification(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True)

    to: StrictStr
    body: StrictStr
    topic: StrictStr = ""


class _Custom(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    name: StrictStr
    value: object


@dataclass(frozen=True, slots=True)
class Read:
    """What is understood, and the names of what is not."""

    obligations: Obligations
    problems: tuple[str, ...] = ()


def read_obligations(given: object) -> Read:
    """The member `obligations` of an answer's context. Those that are understood are read, whatever the others are."""
    if not isinstance(given, list):
        return Read(Obligations(), ("obligations that are not a list",))
    found: list[Obligations] = []
    problems = [f"more than {MAX_OBLIGATIONS} obligations"] if len(given) > MAX_OBLIGATIONS else []
    for each in given[:MAX_OBLIGATIONS]:
        try:
            obligation = _Obligation.model_validate(each)
        except ValidationError:
            kind = each.get("type") if isinstance(each, Mapping) else None
            problems.append(f"{_named(kind)} without `id`, `type` or `properties`")
            continue
        try:
            found.append(_understood(obligation))
        except KeyError:
            problems.append(_named(obligation.type))
        except ValidationError as error:
            place = ".".join(str(part) for part in error.errors(include_input=False)[0]["loc"])
            problems.append(f"{_named(obligation.type)} with a wrong `{place[:100]}`")
    return Read(Obligations.strictest(found), tuple(problems))


def _understood(obligation: _Obligation) -> Obligations:
    """Raises KeyError for a type or a name that is not known, ValidationError for properties that are not right."""
    if obligation.type == "notification":
        notice = _Notification.model_validate(obligation.properties)
        text = f"{notice.topic}: {notice.body}" if notice.topic else notice.body
        return Obligations.of(_OURS.validate_python({"notify": [{"to": notice.to, "text": text}]}))
    if obligation.type != "custom":
        raise KeyError(obligation.type)
    custom = _Custom.model_validate(obligation.properties)
    if custom.name not in SUPPORTED:
        raise KeyError(custom.name)
    return Obligations.of(_OURS.validate_python({custom.name: custom.value}))


def _named(kind: object) -> str:
    return " ".join(kind.split())[:100] if isinstance(kind, str) and kind.strip() else "an obligation"
