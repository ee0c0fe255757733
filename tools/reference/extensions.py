"""The points at which other packages add to the program, and what is registered there by this one."""

from __future__ import annotations

import tomllib
from importlib import import_module
from pathlib import Path

from tools.reference.docstrings import summary
from tools.reference.markdown import code, page, prose, table

_PROJECT = Path(__file__).parents[2] / "pyproject.toml"
_HEAD = """\
# Extension points

Actions, issuers and policy engines are found by entry point: a package of yours adds one without touching this one
([how](../extend.md)). A name belongs to one package; where two register the same, or another takes that of a built-in
part, no command starts. Each object is a class with the members of its protocol, which is named below.
"""
_PROTOCOLS = {
    "orchestrator.actions": "orchestrator.actions.base:Action",
    "orchestrator.issuers": "orchestrator.credentials.types:Issuer",
    "orchestrator.policy_engines": "orchestrator.policy.types:PolicyEngine",
}


def registered(group: str) -> list[tuple[str, str]]:
    """The names that this package registers in a group, with the place of each, as `module:attribute`."""
    return list(groups()[group].items())


def groups() -> dict[str, dict[str, str]]:
    """Every group, as `pyproject.toml` has it."""
    with _PROJECT.open("rb") as file:
        points: dict[str, dict[str, str]] = tomllib.load(file)["project"]["entry-points"]
    return points


def text() -> str:
    """The page."""
    return page(_HEAD, *(_group(group) for group in groups()))


def _group(group: str) -> str:
    rows = [(code(name), code(place), prose(_first(place))) for name, place in registered(group)]
    protocol = _PROTOCOLS[group]
    return page(
        f"## {group}",
        f"The protocol is {code(protocol)}: {prose(_first(protocol))}",
        table(("name", "class", "what it does"), rows),
    )


def _first(place: str) -> str:
    """What a class is, in a sentence: its `summary` or the first paragraph of its docstring."""
    module, _, attribute = place.partition(":")
    found = getattr(import_module(module), attribute)
    said = getattr(found, "summary", None)
    return said if isinstance(said, str) else summary(found).split("\n\n")[0]
