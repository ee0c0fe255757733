"""The graph of a workflow: what each step waits for."""

from __future__ import annotations

from typing import Any

from orchestrator.grants.models import DatabaseGrant
from orchestrator.workflow.dependencies import raw_dependencies
from orchestrator.workflow.models import Step, Workflow


def dependencies(workflow: Workflow) -> dict[str, frozenset[str]]:
    """For each step, in declaration order, the steps it waits for: `needs`, and those its expressions refer to.

    Those in row limits count: what a login may see can depend on what another step found.
    """
    return raw_dependencies({name: _raw(step) for name, step in workflow.steps.items()})


def _raw(step: Step) -> dict[str, Any]:
    limits = [
        limit
        for grant in step.grants.values()
        if isinstance(grant, DatabaseGrant)
        for privilege in grant.privileges
        for limit in privilege.where.values()
    ]
    return {"needs": list(step.needs), "with": step.with_, "if": step.if_, "grants": limits}


def execution_order(workflow: Workflow) -> list[str]:
    """The steps so that each comes after those it waits for; otherwise in declaration order."""
    waiting = dependencies(workflow)
    order: list[str] = []
    while waiting:
        ready = next(step for step, needed in waiting.items() if needed <= set(order))
        order.append(ready)
        del waiting[ready]
    return order
