"""The graph of a workflow: what each step waits for."""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heappop, heappush
from typing import Any

from orchestrator.grants.fields import BOUND
from orchestrator.grants.models import DatabaseGrant
from orchestrator.workflow.dependencies import raw_dependencies
from orchestrator.workflow.models.steps import Step
from orchestrator.workflow.models.workflow import Workflow


def dependencies(workflow: Workflow) -> dict[str, frozenset[str]]:
    """For each step, in declaration order, the steps it waits for: `needs`, and those its expressions refer to.

    Those in grants count: what a login may see can depend on what another step found.
    """
    return raw_dependencies({name: _raw(step) for name, step in workflow.parts.items()})


def _raw(step: Step) -> dict[str, Any]:
    limits = [
        limit
        for grant in step.grants.values()
        if isinstance(grant, DatabaseGrant)
        for privilege in grant.privileges
        for limit in privilege.where.values()
    ]
    bound = [grant.model_dump(include=set(BOUND), exclude_unset=True) for grant in step.grants.values()]
    return {
        "needs": list(step.needs),
        "when": step.when,
        "for_each": step.for_each,
        "with": step.with_,
        "if": step.if_,
        "grants": [*limits, *bound],
    }


def execution_order(waiting: Mapping[str, frozenset[str]]) -> list[str]:
    """The steps so that each comes after those it waits for; otherwise in declaration order.

    `waiting` is what `dependencies` gives, without cycles. Each step and each dependency is looked at once.
    """
    places = {step: place for place, step in enumerate(waiting)}
    missing = {step: len(needed) for step, needed in waiting.items()}
    dependents: dict[str, list[str]] = {step: [] for step in waiting}
    for step, needed in waiting.items():
        for each in needed:
            dependents[each].append(step)
    ready = [(places[step], step) for step, count in missing.items() if not count]
    order: list[str] = []
    while ready:
        _, step = heappop(ready)
        order.append(step)
        for dependent in dependents[step]:
            missing[dependent] -= 1
            if not missing[dependent]:
                heappush(ready, (places[dependent], dependent))
    return order
