"""What a service does beside its runs, again and again: it goes on where others died, and closes what was left."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from orchestrator.actions.process.private_folders import remove_left_behind
from orchestrator.credentials.governor.governor import Governor
from orchestrator.evidence.retention import prune
from orchestrator.ledger.lease import LeaseState
from orchestrator.policy.watched import WatchedPolicies
from orchestrator.recovery.backoff import is_due
from orchestrator.recovery.dead_runs import Verdict, goes_on_here
from orchestrator.recovery.irrevocable import close_irrevocable
from orchestrator.recovery.open_leases import close_left_over, left_over
from orchestrator.recovery.orphans import sweep_at, sweep_once
from orchestrator.recovery.takeover import Recovery
from orchestrator.recovery.unended import end_run
from orchestrator.recovery.waiting import decided_in_queue, decided_runs
from orchestrator.runs.runner import Runner
from orchestrator.runs.types import Services
from orchestrator.scheduling.launcher import Launcher
from orchestrator.server.maintenance import Maintenance
from orchestrator.telemetry.metrics import Metrics, figures

log = logging.getLogger(__name__)

SAMPLE_SECONDS = 15.0
"""Between two counts of the leases that are not confirmed gone."""

PLACES_SECONDS = 5.0
"""Between two counts of who holds and who waits for places of connections: attempts wait for seconds, not for hours."""

RECOVERY_SECONDS = 1.0
"""Between two looks for dead processes."""

LEFTOVER_SECONDS = 15.0
"""Between two looks at what ended runs could not confirm closed; each lease is tried when its pause is over."""

IRREVOCABLE_SECONDS = 60.0
"""Between two looks at what Vault has given up revoking."""

IDENTITY_SECONDS = 1.0
"""Between two looks at how long the orchestrator's own Vault token still lives."""

CHECKPOINT_SECONDS = 2.0
"""Between two looks at whether a history that has ended is not signed yet."""

RETENTION_SECONDS = 3600.0
"""Between two looks for values whose retention is over."""

UNSIGNED_SECONDS = 60.0
"""The same after one that could not be signed or published."""

POLICY_SECONDS = 2.0
"""Between two looks at the files of the policies while nothing is asked; before each question they are looked at."""

RENEWAL_SECONDS = 5.0
"""How long renewing it may take."""


def upkeep(
    services: Services,
    launcher: Launcher,
    metrics: Metrics,
    *,
    sweep_interval: float,
    wake: Callable[[str], None] | None = None,
) -> Sequence[Maintenance]:
    """The work with the seconds between two rounds of it. `wake` has the shared queue hand a run out."""
    return [
        (RECOVERY_SECONDS, _recovery(services, launcher, metrics)),
        (RECOVERY_SECONDS, _unended(services, launcher)),
        (RECOVERY_SECONDS, _decided(services, launcher, wake)),
        (LEFTOVER_SECONDS, _leftovers(services)),
        (sweep_interval, _orphans(services, sweep_interval)),
        (IRREVOCABLE_SECONDS, _irrevocable(services, metrics)),
        (IDENTITY_SECONDS, _identity(services)),
        (CHECKPOINT_SECONDS, _checkpoints(services)),
        *([(RETENTION_SECONDS, _retention(services))] if services.retention.is_any else []),
        (POLICY_SECONDS, _policies(services, metrics)),
        (SAMPLE_SECONDS, _pending_leases(services, metrics)),
        *([(PLACES_SECONDS, _places(services, governor, metrics))] if (governor := services.broker.governor) else []),
    ]


def _recovery(services: Services, launcher: Launcher, metrics: Metrics) -> Callable[[], Awaitable[None]]:
    """Close what dead processes left, go on with what services had started, and end the rest as interrupted."""
    recovery = Recovery(services, goes_on=lambda record: goes_on_here(services, record))

    async def recover() -> None:
        for found in await recovery.once():
            about = {"run": found.run_id, "workflow": found.workflow}
            if found.resumable is not None:
                log.warning("took over run %s from %s", found.run_id, found.dead, extra=about)
                launcher.launch(Runner(services), found.resumable.request, found.resumable)
            else:
                log.warning("run %s of %s: %s", found.run_id, found.dead, found.verdict.value, extra=about)
            if found.verdict is Verdict.INTERRUPT:
                metrics.interrupted(found.workflow)

    return recover


def _decided(
    services: Services, launcher: Launcher, wake: Callable[[str], None] | None
) -> Callable[[], Awaitable[None]]:
    """Go on with runs that waited for somebody to agree, when that is decided."""

    async def decided() -> None:
        if wake is not None:
            for run_id in await asyncio.to_thread(decided_in_queue, services):
                await asyncio.to_thread(wake, run_id)
        for taken in await decided_runs(services):
            run_id = taken.request.run_id
            log.info("run %s goes on: its approval is decided", run_id, extra={"run": run_id})
            launcher.launch(Runner(services), taken.request, taken)

    return decided


def _unended(services: Services, launcher: Launcher) -> Callable[[], Awaitable[None]]:
    """Record an end of our own runs that died without one."""

    async def unended() -> None:
        for run_id in tuple(launcher.unended):
            await end_run(services, run_id)
            launcher.unended.discard(run_id)
            log.warning("run %s had died without an end, and was ended", run_id, extra={"run": run_id})

    return unended


def _leftovers(services: Services) -> Callable[[], Awaitable[None]]:
    async def leftovers() -> None:
        records = await asyncio.to_thread(left_over, services.reader)
        due = [lease for lease in records if is_due(lease, services.clock.now())]
        for found in await close_left_over(services, due, at_once=False):
            if found.confirmed:
                log.info("lease %s is gone at last", found.lease.lease_id, extra={"lease": found.lease.lease_id})

    return leftovers


def _orphans(services: Services, seconds: float) -> Callable[[], Awaitable[None]]:
    async def orphans() -> None:
        await asyncio.to_thread(remove_left_behind)
        for swept in await sweep_once(services, sweep_at(services.clock.now(), seconds)) or ():
            if not swept.clean:
                log.error("expired logins of %s: %s", swept.connection, swept.reason)

    return orphans


def _irrevocable(services: Services, metrics: Metrics) -> Callable[[], Awaitable[None]]:
    async def irrevocable() -> None:
        metrics.irrevocable(len(await close_irrevocable(services, at_once=False)))

    return irrevocable


def _identity(services: Services) -> Callable[[], Awaitable[None]]:
    """Renew the orchestrator's own Vault token while there is nothing to do."""

    async def identity() -> None:
        deadline = services.clock.monotonic() + RENEWAL_SECONDS
        await services.broker.vault.keep_identity(deadline=deadline)

    return identity


def _checkpoints(services: Services) -> Callable[[], Awaitable[None]]:
    """Sign the histories of what has ended, and publish that."""
    making, clock = services.checkpointing, services.clock
    not_before = 0.0

    async def checkpoints() -> None:
        nonlocal not_before
        if clock.monotonic() < not_before:
            return
        not_before = clock.monotonic() + UNSIGNED_SECONDS
        await making.make()
        problems = await making.publish(at_once=False)
        for problem in problems:
            log.error("%s", problem)
        if not problems:
            not_before = 0.0

    return checkpoints


def _retention(services: Services) -> Callable[[], Awaitable[None]]:
    async def retention() -> None:
        pruned = await prune(services.ledger, services.reader, services.retention, services.clock.now())
        if pruned.runs:
            log.info("dropped inputs of %d and outputs of %d runs", pruned.inputs, pruned.outputs)

    return retention


def _policies(services: Services, metrics: Metrics) -> Callable[[], Awaitable[None]]:
    async def policies() -> None:
        if isinstance(services.policy, WatchedPolicies):
            services.policy.refresh()
            metrics.policies(stale=bool(services.policy.trouble))

    return policies


def _pending_leases(services: Services, metrics: Metrics) -> Callable[[], Awaitable[None]]:
    async def pending_leases() -> None:
        counts = await asyncio.to_thread(services.reader.open_lease_counts)
        metrics.pending(counts[LeaseState.REVOKING])

    return pending_leases


def _places(services: Services, governor: Governor, metrics: Metrics) -> Callable[[], Awaitable[None]]:
    async def places() -> None:
        now = services.clock.now()
        metrics.places(figures(await asyncio.to_thread(services.reader.places, now), governor.limits, now))

    return places
