"""Finding extensions by entry point: actions, issuers and policy engines, ours and other people's alike."""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from orchestrator.errors import UsageError


@cache
def _by_name(group: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=group)}


def names(group: str) -> list[str]:
    """The names that are registered in a group, sorted."""
    return sorted(_by_name(group))


@cache
def load(group: str, name: str) -> Any:
    """The object registered under this name. Raises UsageError when there is none."""
    point = _by_name(group).get(name)
    if point is None:
        close = get_close_matches(name, names(group), n=1)
        hint = f"did you mean `{close[0]}`?" if close else f"known: {', '.join(names(group)) or 'none'}"
        raise UsageError(f"nothing is registered as `{name}` in {group}", hint=hint)
    return point.load()
