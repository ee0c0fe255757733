"""Whether `authorization_details` (RFC 9396) permit what a request does: not where anything is not understood."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.jsontypes import JsonObject, JsonValue

Judge = Callable[[JsonValue], bool]
"""Whether the value of a member permits this request."""


@dataclass(frozen=True, slots=True)
class Operation:
    """What one request does, in the words of its API: the common members of RFC 9396, 2.2, each in the singular that a
    request has, or several `locations`, `datatypes` and `privileges` that it needs all of.

    `understood` is for the other members of this `type`, by their names: a function that says whether the value which
    the token has there permits this request. A member that is not named is not understood, and permits nothing.
    """

    type: str
    action: str
    identifier: str | None = None
    locations: frozenset[str] = frozenset()
    datatypes: frozenset[str] = frozenset()
    privileges: frozenset[str] = frozenset()
    understood: Mapping[str, Judge] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if own := set(self.understood) & _COMMON:
            raise ValueError(f"{', '.join(sorted(own))} cannot be judged in another way")
        if any(isinstance(each, str) for each in (self.locations, self.datatypes, self.privileges)):
            raise ValueError("locations, datatypes and privileges are sets of texts")


_LISTS = ("locations", "datatypes", "privileges")
_COMMON = frozenset({"type", "actions", "identifier", *_LISTS})


def permits(details: Sequence[JsonObject], operation: Operation) -> bool:
    """Whether one element alone permits all of the operation: two that permit a half each do not make a whole."""
    return any(element_permits(element, operation) for element in details)


def element_permits(element: JsonObject, operation: Operation) -> bool:
    """Whether this element permits the operation.

    Whatever the element is limited to, the operation must say; whatever the operation says, the element must hold.
    """
    if element.get("type") != operation.type or not _holds(element, "actions", frozenset({operation.action})):
        return False
    if element.get("identifier") != operation.identifier or (
        "identifier" in element and not isinstance(element["identifier"], str)
    ):
        return False
    if not all(_holds(element, name, getattr(operation, name)) for name in _LISTS):
        return False
    return all(_judged(element, name, operation) for name in set(element) - _COMMON)


def _holds(element: JsonObject, name: str, wanted: frozenset[str]) -> bool:
    """Whether a list of texts holds everything that is wanted; one that nobody asked about is a limit unheard of."""
    if name not in element:
        return not wanted
    listed = element[name]
    return (
        isinstance(listed, list)
        and bool(wanted)
        and all(isinstance(each, str) for each in listed)
        and (wanted <= set(listed))
    )


def _judged(element: JsonObject, name: str, operation: Operation) -> bool:
    judge = operation.understood.get(name)
    return judge is not None and judge(element[name]) is True
