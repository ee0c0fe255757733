"""What `leases sweep` does at once: dead processes, left-over leases, what Vault has given up, expired logins."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.errors import OrchestratorError
from orchestrator.ledger.ids import new_run_id
from orchestrator.recovery.closing_pass import Leftover
from orchestrator.recovery.irrevocable import Irrevocable, close_irrevocable
from orchestrator.recovery.open_leases import close_left_over, left_over
from orchestrator.recovery.orphans import ConnectionSwept, sweep_orphans
from orchestrator.recovery.takeover import Recovery
from orchestrator.runs.types import Services


@dataclass(frozen=True, slots=True)
class Swept:
    """What was found and what became of it. `problems` are what could not be looked at, in words."""

    leases: tuple[Leftover, ...]
    orphans: tuple[ConnectionSwept, ...]
    irrevocable: tuple[Irrevocable, ...]
    problems: tuple[str, ...]

    @property
    def clean(self) -> bool:
        """Whether nothing is left that somebody could use. What only Vault's list still names is not counted."""
        return (
            all(each.confirmed for each in self.leases)
            and all(each.clean for each in self.orphans)
            and not self.problems
        )


async def sweep_everything(services: Services) -> Swept:
    """Close all that is left over, without waiting for pauses between tries. Safe to repeat.

    Vault's list and the databases are looked at even if one of them does not answer. Raises LedgerError.
    """
    recovered = await Recovery(services).until_decided()
    leases = [lease for run in recovered for lease in run.leases]
    problems: list[str] = []
    irrevocable: tuple[Irrevocable, ...] = ()
    try:
        irrevocable = await close_irrevocable(services, at_once=True)
    except OrchestratorError as error:
        problems.append(
            f"what Vault has given up revoking could not be listed: {error.message}"
            " (where the runtime's policy lacks `sys/leases`, run `orchestrator provision apply`)"
        )
    seen = {each.lease.lease_id for each in leases}
    rest = [lease for lease in left_over(services.reader) if lease.lease_id not in seen]
    leases += await close_left_over(services, rest)
    orphans = await sweep_orphans(services, new_run_id())
    return Swept(tuple(leases), orphans or (), irrevocable, tuple(problems))
