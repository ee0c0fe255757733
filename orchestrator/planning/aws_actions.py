"""Lint of `aws` grants: whether AWS has the actions, and whether they act on the resources."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.grants.aws import reference
from orchestrator.grants.aws.grant import AwsGrant
from orchestrator.workflow.aws_grants import parts_of
from orchestrator.workflow.loader import LoadedWorkflow
from orchestrator.workflow.models.workflow import Workflow
from orchestrator.workflow.problems import Problem

NOT_LOOKED_UP = "the actions of AWS were not looked up: that takes `pip install 'credential-orchestrator[aws]'`"


def looks_nothing_up(workflow: Workflow) -> bool:
    """Whether it has `aws` grants, and nothing is known here of AWS's actions."""
    grants = (grant for step in workflow.parts.values() for grant in step.grants.values())
    return any(isinstance(grant, AwsGrant) for grant in grants) and not reference.installed()


def actions_of_aws(loaded: LoadedWorkflow) -> Iterator[Problem]:
    """Actions that there are not, and what does not go together (errors); a warning where nobody can tell."""
    for step_id, step in loaded.workflow.parts.items():
        for name, grant in step.grants.items():
            if not isinstance(grant, AwsGrant):
                continue
            if not reference.installed():
                place = loaded.place(step_id, "grants", name, "actions")
                yield loaded.problem(
                    place, NOT_LOOKED_UP.partition(":")[0], NOT_LOOKED_UP.partition(": ")[2], warning=True
                )
                continue
            resources = ["".join("*" if part is None else part for part in parts_of(each)) for each in grant.resources]
            for each in reference.findings(grant.actions, resources):
                place = loaded.place(step_id, "grants", name, each.part, each.index)
                yield loaded.problem(place, each.message, each.hint)
