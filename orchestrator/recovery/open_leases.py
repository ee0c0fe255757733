"""Leases that an earlier process could not confirm closed: which they are, and closing them.

A lease is left over when its run has ended and the lease has not. It is closed as the broker would
have closed it; what Vault cannot confirm is looked for in the database. An issuance whose answer
was lost is only called gone once Vault cannot be working on it any more.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress

from orchestrator.credentials.closing import close_lease
from orchestrator.credentials.types import LeaseHandle
from orchestrator.errors import FenceLost, IllegalTransition
from orchestrator.ledger.coordination.runners import RunnerStore
from orchestrator.ledger.events import LeaseRevoked
from orchestrator.ledger.states import RunState
from orchestrator.ledger.types import LeaseRecord, LedgerReader
from orchestrator.recovery.closing_pass import CLOSING_SECONDS, Leftover, RunToClose, close_pass
from orchestrator.runs.processes import has_ended
from orchestrator.runs.types import Services


def left_over(reader: LedgerReader, runners: RunnerStore | None = None) -> list[LeaseRecord]:
    """Every lease that is not over although its run is, newest first; with `runners` also those of dead processes."""
    dead = () if runners is None else [each.runner_id for each in runners.all() if has_ended(each)]
    return list(reader.leases_of_ended_runs(dead=dead))


async def close_left_over(
    services: Services, records: Sequence[LeaseRecord], *, seconds: float = CLOSING_SECONDS, at_once: bool = True
) -> list[Leftover]:
    """Close leases of ended runs in one pass and record what could be confirmed. Safe to repeat.

    Where a database takes longer than its time the rest of its leases is answered as not confirmed, untried.
    `seconds` and `at_once` as in `close_pass`.
    """
    by_run: dict[str, list[LeaseRecord]] = defaultdict(list)
    for record in records:
        by_run[record.run_id].append(record)
    runs: list[RunToClose] = []
    for run_id, leases in by_run.items():
        with suppress(FenceLost, IllegalTransition):  # another process is closing them at the same time
            fence = await services.ledger.take_over(run_id, ended=True)
            runs.append(RunToClose(run_id, fence, tuple(leases), "found open after its run had ended"))
    outcome, errors = await close_pass(services, runs, seconds=seconds, at_once=at_once)
    for error in errors.values():
        if not isinstance(error, FenceLost | IllegalTransition):
            raise error
    return outcome


async def revoke_now(services: Services, lease: LeaseRecord) -> Leftover:
    """Take one lease back at once. Of a run that goes on the run itself records it when the step ends."""
    run = await asyncio.to_thread(services.reader.run, lease.run_id)
    if run is not None and run.state is not RunState.RUNNING:
        found = await close_left_over(services, [lease])
        return found[0] if found else Leftover(lease, False, "another process is closing it")
    deadline = services.clock.monotonic() + CLOSING_SECONDS
    end = await close_lease(LeaseHandle.of(lease), services.broker.vault, deadline=deadline)
    if isinstance(end, LeaseRevoked):
        return Leftover(lease, True, "revoked in Vault; its run records it when the step ends")
    return Leftover(lease, False, getattr(end, "error", "") or "it cannot be revoked: it stays valid until it expires")


async def close_leases(
    services: Services,
    fence: int,
    leases: Sequence[LeaseRecord],
    reason: str,
    *,
    parent_revoked: bool = False,
    seconds: float = CLOSING_SECONDS,
) -> list[Leftover]:
    """Close open leases of one run that is ours under `fence`, as one pass. Safe to repeat.

    An error of one step key is raised once all have been tried.
    """
    if not leases:
        return []
    run = RunToClose(leases[0].run_id, fence, tuple(leases), reason, parent_revoked=parent_revoked)
    outcome, errors = await close_pass(services, [run], seconds=seconds)
    for error in errors.values():
        raise error
    return outcome
