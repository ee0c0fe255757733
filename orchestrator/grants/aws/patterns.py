"""Actions, resources and conditions of a session policy, as they may be declared.

IAM reads `*` and `?` anywhere in a resource as wildcards, across every separator, and `${...}` as a variable of its
own (IAM User Guide, "IAM JSON policy elements: Resource" and "Variables and tags"). So a value that only the run knows
may hold nothing of that, and nothing that would lead out of the segment of the path in which it stands.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

WildcardPlace = Literal["actions", "resources"]
"""Where a grant may be as broad as a wildcard makes it, if it says so."""

Parts = Sequence[str | None]
"""A text in which None stands for a value that the run binds."""

_ACTION = re.compile(r"[a-z0-9-]{1,64}:[A-Za-z0-9*?]{1,128}")
_PARTITION = re.compile(r"aws(?:-[a-z]{1,12}){0,3}")
_SERVICE = re.compile(r"[a-z0-9-]{1,64}")
_REGION = re.compile(r"[a-z0-9-]{0,40}")
_ACCOUNT = re.compile(r"(?:[0-9]{12}|aws)?")
_VALUE = re.compile(r"[A-Za-z0-9_.@=+,~-]{1,256}")
_PRINTABLE = re.compile(r"[\x20-\x7e]*")
_WILD = re.compile(r"[*?]")
_OPERATOR = re.compile(
    r"(?:(?:ForAllValues|ForAnyValue):)?"
    r"(?:String(?:Not)?(?:Equals(?:IgnoreCase)?|Like)|Numeric(?:(?:Not)?Equals|LessThan(?:Equals)?|GreaterThan(?:Equals)?)"
    r"|Date(?:(?:Not)?Equals|LessThan(?:Equals)?|GreaterThan(?:Equals)?)|Bool|BinaryEquals|(?:Not)?IpAddress"
    r"|Arn(?:Not)?(?:Equals|Like))(?:IfExists)?|Null"
)
_KEY = re.compile(r"[a-z0-9-]{1,64}:[A-Za-z0-9_.:/=+@-]{1,200}")
_HOLE = "\0"

ENDS = ("DateLessThan", "aws:CurrentTime")
"""The condition with which every session policy ends; a grant declares none of these two."""


def check_action(action: str) -> str:
    """One action of one service, such as `s3:GetObject`. Raises ValueError."""
    if not _ACTION.fullmatch(action):
        raise ValueError(f"{action!r} is not an action like `s3:GetObject`")
    return action


def check_breadth(actions: Sequence[str], resources: Sequence[Parts], allowed: Sequence[str]) -> None:
    """Raises ValueError for a wildcard in an action, or for a resource that is broad by one, that is not allowed."""
    for action in actions:
        if _WILD.search(action) and "actions" not in allowed:
            raise ValueError(f"the action `{action}` has a wildcard: name the actions, or say `wildcards: [actions]`")
    for parts in resources:
        if is_broad(parts) and "resources" not in allowed:
            raise ValueError(
                f"the resource `{shown(parts)}` is of no certain owner, place or name: write it out up to the name, "
                "or say `wildcards: [resources]`"
            )


def check_resource(parts: Parts) -> Parts:
    """One ARN, or `*`. Raises ValueError where it is none, or a value that is bound could mean more than itself."""
    text = _joined(parts)
    if text == "*":
        return parts
    literal = text.replace(_HOLE, "")
    if not _PRINTABLE.fullmatch(literal) or "$" in literal or "\\" in literal or '"' in literal:
        raise ValueError(f"`{shown(parts)}` has a character that no resource of a grant may have (`$`, a quote...)")
    fields = text.split(":", 5)
    if len(fields) < 6 or fields[0] != "arn" or not fields[5]:
        raise ValueError(f"`{shown(parts)}` is not an ARN like `arn:aws:s3:::reports/2026/*`")
    _, partition, service, region, account, _ = fields
    if any(_HOLE in each for each in fields[:5]):
        raise ValueError(f"`{shown(parts)}`: an expression stands in the name of the resource only, after the account")
    if not _PARTITION.fullmatch(partition) or not _SERVICE.fullmatch(service):
        raise ValueError(f"`{shown(parts)}` does not name a partition and a service, as `arn:aws:s3:::` does")
    wild_account = account in ("*", "")
    if not (_REGION.fullmatch(region) or region == "*") or not (_ACCOUNT.fullmatch(account) or wild_account):
        raise ValueError(f"`{shown(parts)}` does not name a region and an account of twelve digits, or leave them out")
    check_holes(parts)
    return parts


def check_holes(parts: Parts) -> None:
    """Raises ValueError for a bound value beside a wildcard, with which it would also mean longer ones."""
    text = _joined(parts)
    if re.search(rf"[*?]{_HOLE}|{_HOLE}[*?]", text):
        raise ValueError(f"`{shown(parts)}`: a value beside a wildcard also stands for longer ones; end it with `/`")
    if _HOLE + _HOLE in text:
        raise ValueError(f"`{shown(parts)}`: two values in a row can be read in two ways; put a `/` between them")


def is_broad(parts: Parts) -> bool:
    """Whether a wildcard stands where a region, an account or the name of a thing would: every one is meant then.

    In the path of a thing (`reports/2026/*`) it is not.
    """
    text = _joined(parts)
    if text == "*":
        return True
    _, _, service, region, account, resource = text.split(":", 5)
    segments = re.split(r"[/:]", resource, maxsplit=2)
    first_of_name = segments[0] if service == "s3" or len(segments) == 1 else "".join(segments[:1])
    named = len(segments) > 1 and service != "s3" and _WILD.match(segments[1]) is not None
    return bool(_WILD.search(region + account) or _WILD.search(first_of_name) or named)


def check_value(value: object) -> str:
    """A value that the run binds, as it stands in the policy. Raises ValueError for all that could mean more."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError("it is not one text or whole number")
    text = str(value)
    if not _VALUE.fullmatch(text):
        raise ValueError("it has other characters than letters, digits and `_.@=+,~-`, or is empty or too long")
    if not text.strip("."):
        raise ValueError("it consists of dots")
    return text


def check_conditions(conditions: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
    """Raises ValueError for what is no operator or no key of a condition, or is the one that ends the session."""
    for operator, keys in conditions.items():
        if not _OPERATOR.fullmatch(operator):
            raise ValueError(f"`{operator}` is not an operator like `StringEquals` (IAM, condition operators)")
        if not keys:
            raise ValueError(f"`{operator}` has no key")
        for key in keys:
            if not _KEY.fullmatch(key):
                raise ValueError(f"`{key}` is not a condition key like `s3:prefix`")
            if (operator.casefold(), key.casefold()) == tuple(each.casefold() for each in ENDS):
                raise ValueError("the policy ends with the step by itself: use another operator for `aws:CurrentTime`")


def check_condition_value(parts: Parts) -> Parts:
    """One value of a condition. Raises ValueError."""
    literal = _joined(parts).replace(_HOLE, "")
    if not _PRINTABLE.fullmatch(literal) or "$" in literal:
        raise ValueError(f"`{shown(parts)}` has a character that no condition of a grant may have, such as `$`")
    check_holes(parts)
    return parts


def filled(parts: Parts, values: Sequence[object]) -> str:
    """The text with these values where there was none. Raises ValueError; the value is no part of it."""
    left = iter(values)
    return "".join(part if part is not None else check_value(next(left)) for part in parts)


def shown(parts: Parts) -> str:
    """For people."""
    return "".join("${{...}}" if part is None else part for part in parts)


def _joined(parts: Parts) -> str:
    if any(part is not None and _HOLE in part for part in parts):
        raise ValueError("there is a NUL character")
    return "".join(_HOLE if part is None else part for part in parts)


def _literal(check: Callable[[Parts], Parts]) -> Callable[[str], str]:
    """A check of a text that has no expression; one that has is checked where expressions are understood."""

    def checked(text: str) -> str:
        if "${{" not in text:
            check([text])
        return text

    return checked


Action = Annotated[str, AfterValidator(check_action)]
Resource = Annotated[str, Field(min_length=1, max_length=2048), AfterValidator(_literal(check_resource))]
ConditionValue = Annotated[str, Field(max_length=2048), AfterValidator(_literal(check_condition_value))]
