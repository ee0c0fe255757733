"""The graph of a workflow: what each step waits for."""

from __future__ import annotations

from orchestrator.workflow.dependencies import raw_dependencies
from orchestrator.workflow.models import Workflow


def dependencies(workflow: Workflow) -> dict[str, frozenset[str]]:
    """For each step, in declaration order, the steps it waits for: `needs`, and those its expressions refer to."""
    return raw_dependencies(
        {name: {"needs": list(step.needs), "with": step.with_, "if": step.if_} for name, step in workflow.steps.items()}
    )


def execution_order(workflow: Workflow) -> list[str]:
    """The steps so that each comes after those it waits for; otherwise in declaration order."""
    waiting = dependencies(workflow)
    order: list[str] = []
    while waiting:
        ready = next(step for step, needed in waiting.items() if needed <= set(order))
        order.append(ready)
        del waiting[ready]
    return order
