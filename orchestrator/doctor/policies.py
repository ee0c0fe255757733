"""Whether the policies are valid, and what they say to the steps of the workflows."""

from __future__ import annotations

from orchestrator.actions.catalog import action
from orchestrator.doctor.findings import Finding, fault_of, fine, not_seen, warning
from orchestrator.doctor.subject import Subject
from orchestrator.errors import OrchestratorError
from orchestrator.planning.plan import build
from orchestrator.policy.asking import decisions
from orchestrator.policy.types import ConnectedEngine, PolicyEngine
from orchestrator.workflow.inputs import bind_inputs
from orchestrator.workflow.loader import LoadedWorkflow

AREA = "policies"


async def policies(subject: Subject) -> list[Finding]:
    """The engine is opened, asked about every step as a plan asks, and closed."""
    try:
        engine = subject.policy()
    except OrchestratorError as error:
        return [fault_of(AREA, error)]
    if engine.name == "allow-all":
        return [
            warning(AREA, "no policy decides: everything is allowed", "choose another engine with ORCHESTRATOR_POLICY")
        ]
    try:
        said = [each for loaded in subject.workflows for each in await _asked(engine, loaded, subject)]
    except OrchestratorError as error:
        return [fault_of(AREA, error)]
    finally:
        if isinstance(engine, ConnectedEngine):
            await engine.aclose()
    return said or [fine(AREA, f"{engine.name} answers" + (", and allows every step" if subject.workflows else ""))]


async def _asked(engine: PolicyEngine, loaded: LoadedWorkflow, subject: Subject) -> list[Finding]:
    """What is denied of a workflow. What depends on inputs that nobody has given is not known here."""
    workflow = loaded.workflow
    if workflow.is_task:
        return []  # an agent that nobody has named yet would call them
    try:
        planned = build(loaded, bind_inputs(workflow, {}, partial=True), action=action, endpoints=subject.endpoints)
    except OrchestratorError as error:
        return [
            not_seen(
                AREA,
                f"what they say to {workflow.name}, which depends on inputs: {error.message}",
                f"`orchestrator plan {loaded.filename} --input NAME=VALUE` asks with some",
            )
        ]
    found: list[Finding] = []
    for step in planned.steps:
        said = await decisions(engine, step.request, step.items)
        decision = next((each for each in said if not each.allow), None)
        if decision is not None:
            found.append(
                warning(
                    AREA,
                    f"step {step.request.step} of {workflow.name} is denied: {'; '.join(decision.reasons)}",
                    f"`orchestrator plan {loaded.filename}` with the inputs that are meant shows what is asked",
                )
            )
    return found
