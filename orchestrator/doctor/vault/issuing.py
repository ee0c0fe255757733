"""Trying it for real: one step's credentials for each connection, issued, examined and revoked, as `prove` does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from orchestrator.doctor.findings import Finding, fault, fine, warning
from orchestrator.errors import ExitCode, OrchestratorError
from orchestrator.grants.models import DatabaseGrant
from orchestrator.ledger.ids import new_run_id
from orchestrator.proof.examine import Examination
from orchestrator.proof.report import Proof
from orchestrator.proof.service import Prover
from orchestrator.runs.types import RunRequest, Services
from orchestrator.workflow.inputs import bind_inputs
from orchestrator.workflow.loader import LoadedWorkflow

AREA = "issued"


async def issued(services: Services, workflows: Sequence[LoadedWorkflow]) -> list[Finding]:
    """What became of it. Everything is in the ledger, and that it is gone is confirmed by the database."""
    prover = Prover(services=services, wish=Examination())
    found: list[Finding] = []
    for connection, loaded, step in _one_for_each(workflows):
        request = RunRequest(
            run_id=new_run_id(),
            loaded=loaded,
            inputs=bind_inputs(loaded.workflow, {}, partial=True),
            trigger="doctor",
        )
        where = f"{connection}: the credentials of step {step} of {loaded.workflow.name}"
        try:
            found.append(_finding(where, await prover.prove(request, [step])))
        except OrchestratorError as error:
            found.append(fault(AREA, f"{where}: {error.message}", error.hint or "", error.exit_code))
    return found or [warning(AREA, "no step has a login in a database", "name workflows with some")]


def _one_for_each(workflows: Sequence[LoadedWorkflow]) -> Iterator[tuple[str, LoadedWorkflow, str]]:
    """For each connection a step that gets a login there."""
    seen: set[str] = set()
    for loaded in workflows:
        for step_id, step in loaded.workflow.parts.items():
            for grant in step.grants.values():
                if isinstance(grant, DatabaseGrant) and grant.connection not in seen:
                    seen.add(grant.connection)
                    yield grant.connection, loaded, step_id


def _finding(where: str, proof: Proof) -> Finding:
    refused = [grant.refused for grant in proof.grants if grant.refused]
    if refused:
        return fault(
            AREA,
            f"{where} were not issued: {'; '.join(refused)}",
            "run `orchestrator provision check` as an admin, then `orchestrator provision apply`",
            ExitCode.REFUSED,
        )
    if proof.unconfirmed:
        return fault(
            AREA,
            f"{where} were issued, and that they are gone is not confirmed",
            "`orchestrator leases list --state revoking` shows them; `leases sweep` tries again",
            ExitCode.UNCONFIRMED,
        )
    return fine(AREA, f"{where} were issued, and are confirmed gone; recorded as {proof.run_id}")
