"""Which steps of a failed run count in its retry, and of which runs there is one. Nothing is read or asked here."""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.errors import UsageError
from orchestrator.jsontypes import JsonObject
from orchestrator.ledger.reading.queries import SWEEP_WORKFLOW, TRIGGER_PROOF
from orchestrator.ledger.states import RunState, StepState
from orchestrator.ledger.types import RunRecord, StepRecord
from orchestrator.planning.graph import dependencies, execution_order
from orchestrator.step_names import declared_step
from orchestrator.workflow.cel.template import references_in
from orchestrator.workflow.models.steps import Step
from orchestrator.workflow.models.workflow import Workflow


def counted_steps(steps: Iterable[StepRecord], then: Workflow, now: Workflow) -> tuple[str, ...]:
    """The steps that are not carried out again, in the order of declaration, each with its items.

    They have succeeded, are declared as they were, and so is everything that they need. What failed runs again, also
    where that was tolerated, and so does what needs it. Of a step for each item of a list the items count that have
    succeeded, where the list can only be the same.
    """
    succeeded = [each.step for each in steps if each.state is StepState.SUCCEEDED]
    waits = dependencies(now)
    taken: set[str] = set()
    same: set[str] = set()
    for step in execution_order(waits):
        if waits[step] <= taken and _declared(then, step) == _declared(now, step):
            same.add(step)
            if step in succeeded:
                taken.add(step)
    listed = {step for step in same - taken if not _lists_by_the_run(now.steps[step])}
    items = [name for name in succeeded if declared_step(name) != name and declared_step(name) in listed]
    return (*(step for step in now.steps if step in taken), *items)


def _lists_by_the_run(step: Step) -> bool:
    """Whether the items of a step follow from which run it is."""
    texts = step.for_each if isinstance(step.for_each, list) else [step.for_each]
    found = (each for text in texts for each in references_in(text))
    return any(each.path[0] == "run" for each in found)


def _declared(workflow: Workflow, step: str) -> JsonObject | None:
    """A step as data, without what is only said about it."""
    declared: Step | None = workflow.steps.get(step)
    return None if declared is None else declared.model_dump(mode="json", exclude={"description"})


def refuse_what_has_no_retry(run: RunRecord) -> None:
    """Raise UsageError for what goes on, waits, can be resumed or has succeeded, and for what is nobody's run."""
    run_id = run.run_id
    if run.task is not None:
        raise UsageError(
            f"{run_id} is a call in the task {run.task}, and is not retried",
            hint="its agent calls the tool again, with another key",
        )
    if run.workflow == SWEEP_WORKFLOW:
        raise UsageError(f"{run_id} is a sweep, and is not retried", hint="`orchestrator leases sweep` sweeps again")
    if run.trigger == TRIGGER_PROOF:
        raise UsageError(f"{run_id} is a proof, and is not retried", hint="`orchestrator prove` makes another one")
    match run.state:
        case RunState.RUNNING:
            raise UsageError(
                f"run {run_id} goes on: there is nothing to retry yet",
                hint=f"wait for it, or `orchestrator runs cancel {run_id}`; where its process is dead, "
                f"`orchestrator runs resume {run_id}` goes on with it",
            )
        case RunState.WAITING:
            raise UsageError(
                f"run {run_id} waits for approval: there is nothing to retry yet",
                hint=f"`orchestrator approvals list --run {run_id}` shows of what; then "
                f"`orchestrator runs resume {run_id}` goes on with it",
            )
        case RunState.INTERRUPTED:
            raise UsageError(
                f"run {run_id} was interrupted, and can go on itself",
                hint=f"`orchestrator runs resume {run_id}`",
            )
        case RunState.SUCCEEDED:
            raise UsageError(
                f"run {run_id} has succeeded: there is nothing to retry",
                hint="`orchestrator run` begins a new run of the workflow",
            )
        case RunState.FAILED | RunState.REFUSED | RunState.CANCELLED if run.dropped:
            raise UsageError(
                f"the {' and '.join(run.dropped)} of run {run_id} were dropped after their retention: "
                "there is nothing to go on with",
                hint="`orchestrator run` begins a new run of the workflow",
            )
        case RunState.FAILED | RunState.REFUSED | RunState.CANCELLED:
            return
