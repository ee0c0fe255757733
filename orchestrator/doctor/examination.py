"""Everything at once: what waits for a server does so beside the others, and each look has a bound in time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence

from orchestrator.doctor.endpoints import endpoints
from orchestrator.doctor.findings import Finding, Mark, fault, fault_of, not_seen
from orchestrator.doctor.ledger import AREA as LEDGER
from orchestrator.doctor.ledger import ledger
from orchestrator.doctor.machine import confinement, extras, home_token
from orchestrator.doctor.policies import AREA as POLICIES
from orchestrator.doctor.policies import policies
from orchestrator.doctor.subject import Subject
from orchestrator.doctor.vault.login import AREA as LOGIN
from orchestrator.doctor.vault.login import login
from orchestrator.doctor.vault.server import AREA as VAULT
from orchestrator.doctor.vault.server import vault
from orchestrator.doctor.workflows import lacks
from orchestrator.errors import ExitCode, OrchestratorError

_SEVERAL = 4
"""A look that asks several times may take so many times as long as one that asks once."""


async def examine(subject: Subject) -> list[Finding]:
    """All findings, in the order in which they are to be read."""
    at_once = await asyncio.gather(
        _bounded(VAULT, _vault(subject), subject.seconds * _SEVERAL),
        _bounded(POLICIES, policies(subject), subject.seconds * _SEVERAL),
        _bounded(LEDGER, ledger(subject.ledger), subject.seconds * _SEVERAL),
        endpoints(subject),
    )
    here = [*extras(subject), confinement(subject.confinement), *home_token(subject.home_token)]
    missing = lacks(subject.workflows, subject.endpoints, subject.destinations)
    return [*missing, *(each for found in at_once for each in found), *here]


async def _vault(subject: Subject) -> list[Finding]:
    """Vault, and the login where it answers."""
    if isinstance(subject.vault, OrchestratorError):
        return [fault_of(VAULT, subject.vault)]
    found = await vault(subject.vault, subject.clock, subject.seconds)
    if any(each.mark is Mark.FAULT and each.area == VAULT for each in found):
        return [*found, not_seen(LOGIN, "the login, and what is provisioned: Vault does not serve")]
    return [*found, *await login(subject, subject.vault)]


async def _bounded(area: str, look: Awaitable[Sequence[Finding]], seconds: float) -> Sequence[Finding]:
    try:
        async with asyncio.timeout(seconds):
            return await look
    except TimeoutError:
        return [fault(area, f"no answer within {seconds:.0f} s", "is what is in between up?", ExitCode.UNREACHABLE)]
    except OrchestratorError as error:
        return [fault_of(area, error)]
