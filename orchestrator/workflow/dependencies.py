"""What each step waits for: `needs`, and every step that its expressions refer to, row limits included.

A step that runs on failure or always waits for all others where it says nothing of `needs`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.errors import InvalidExpression
from orchestrator.workflow.cel.template import parse_template, references, texts_in
from orchestrator.workflow.expressions import condition_of


def raw_dependencies(steps: Mapping[str, Any]) -> dict[str, frozenset[str]]:
    """From the plain data of `steps`, in declaration order; what does not exist is left out."""
    found = {}
    names = frozenset(steps)
    ordinary = frozenset(name for name, step in steps.items() if not runs_at_the_end(step))
    for step_id, step in steps.items():
        step = step if isinstance(step, dict) else {}
        needs = step.get("needs")
        named = {name for name in (needs if isinstance(needs, list) else []) if isinstance(name, str)}
        if not named and runs_at_the_end(step):
            named |= ordinary
        for cel in _cel_texts(step):
            try:
                named |= {
                    path[1] for path in (each.path for each in references(cel)) if path[0] == "steps" and path[1:]
                }
            except InvalidExpression:
                continue
        found[step_id] = frozenset(name for name in named if name in names and name != step_id)
    return found


def runs_at_the_end(step: Any) -> bool:
    """Whether a step, as plain data, runs on failure or always."""
    return isinstance(step, dict) and step.get("when") in ("on_failure", "always")


def _cel_texts(step: Mapping[str, Any]) -> Iterator[str]:
    for text in texts_in([step.get(key) for key in ("with", "grants", "for_each")]):
        if "${{" not in text:
            continue
        try:
            yield from (expression.cel for expression in parse_template(text).expressions)
        except InvalidExpression:
            continue
    if isinstance(step.get("if"), str):
        try:
            yield condition_of(step["if"])
        except InvalidExpression:
            return


def find_cycle(graph: Mapping[str, frozenset[str]]) -> list[str]:
    """One cycle as `[a, b, a]`, the first in declaration order, or an empty list."""
    done: set[str] = set()
    for start in graph:
        trail: dict[str, Iterator[str]] = {}
        node: str | None = start
        while node is not None or trail:
            if node is not None:
                if node in trail:
                    steps = list(trail)
                    return [*steps[steps.index(node) :], node]
                if node in done:
                    node = None
                    continue
                trail[node] = iter(sorted(graph.get(node, frozenset())))
            current = next(reversed(trail))
            node = next(trail[current], None)
            if node is None:
                done.add(current)
                del trail[current]
    return []
