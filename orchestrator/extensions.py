"""Finding extensions by entry point: actions, issuers and policy engines, ours and other people's alike.

A name belongs to one distribution. Those of the built-in parts are ours. Where another package takes one, or two
packages take the same, the order of `sys.path` would say what allows, issues or acts: that is refused.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from orchestrator.errors import UsageError

_OURS = "credential-orchestrator"
_BUILT_IN = {
    "orchestrator.actions": {
        "postgres.query",
        "postgres.execute",
        "http.request",
        "slack.post_message",
        "aws.call",
        "exec",
        "python",
    },
    "orchestrator.issuers": {"database", "secret", "dynamic", "token", "oauth2", "aws", "certificate"},
    "orchestrator.policy_engines": {"rego", "allow-all", "authzen", "opa"},
}
"""The names that only this project may register, whether its own registration is there or not."""


@cache
def _by_name(group: str) -> dict[str, EntryPoint]:
    """The registrations of a group. Raises UsageError for a name that is not its package's to take."""
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=group):
        if point.name in _BUILT_IN.get(group, ()) and not _is_ours(point):
            raise UsageError(
                f"the package {_shown(point)} registers `{point.name}` in {group}, the name of a built-in part",
                hint="uninstall the package, or have it take another name",
            )
        other = found.setdefault(point.name, point)
        if (_distribution(other), other.value) != (_distribution(point), point.value):
            raise UsageError(
                f"both {_shown(other)} and {_shown(point)} register `{point.name}` in {group}",
                hint="uninstall one of the packages, or have it take another name",
            )
    return found


def _is_ours(point: EntryPoint) -> bool:
    return _distribution(point) == _OURS and point.value.startswith("orchestrator.")


def _distribution(point: EntryPoint) -> str:
    """The normalised name of the distribution that registers it (PyPA, Names and normalization)."""
    return re.sub(r"[-_.]+", "-", point.dist.name).lower() if point.dist is not None else ""


def _shown(point: EntryPoint) -> str:
    return f"`{point.dist.name}` {point.dist.version}" if point.dist is not None else "an unknown package"


def names(group: str) -> list[str]:
    """The names that are registered in a group, sorted. Raises UsageError where two packages fight for one."""
    return sorted(_by_name(group))


@cache
def load(group: str, name: str) -> Any:
    """The object registered under this name. Raises UsageError when there is none, or whose it is is not clear."""
    point = _by_name(group).get(name)
    if point is None:
        close = get_close_matches(name, names(group), n=1)
        hint = f"did you mean `{close[0]}`?" if close else f"known: {', '.join(names(group)) or 'none'}"
        raise UsageError(f"nothing is registered as `{name}` in {group}", hint=hint)
    return point.load()
