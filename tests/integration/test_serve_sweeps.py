"""What `orchestrator serve` looks for beside the runs, as figures show it, and how patient it is."""

from __future__ import annotations

import asyncio

from bench import Bench
from ephemeral import created
from fork_server import ForkServer
from test_irrevocable import BROKEN, give_up
from test_serve import Served, served_on
from waiting import wait_for

from orchestrator.clock import SystemClock
from orchestrator.ledger.events import LeaseRevocationFailed
from orchestrator.ledger.lease import OPEN
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.reading.queries import SWEEP_WORKFLOW
from orchestrator.ledger.states import RunState
from orchestrator.ledger.types import LeaseFilter, LeaseRecord

EXPIRED = "orc_gone-aaaaaaaaaaaa_00000001"
STEP = """
version: 1
name: left
agent: tester
steps:
  ask:
    action: postgres.query
    grants:
      db: { kind: database, connection: support, role: feedback-read }
    with: { sql: SELECT 1 AS one }
"""


def figures(served: Served) -> str:
    return served.get("/metrics").text


def test_expired_logins_are_swept_soon_after_the_start_and_counted(bench: Bench, children: ForkServer) -> None:
    created(bench, EXPIRED, valid="-1 hour")
    with served_on(bench, children) as served:
        served.start()
        wait_for(lambda: 'orchestrator_orphans_swept_total{connection="support"} 1.0' in figures(served), "the sweep")
        assert EXPIRED not in bench.logins()
        (run,) = wait_for(lambda: served.runs(SWEEP_WORKFLOW, RunState.SUCCEEDED), "the run of the sweep")
        assert run.trigger == "sweep"
        assert served.stop() == 0
    bench.assert_nothing_left()


def test_they_are_swept_again_and_again(bench: Bench, children: ForkServer) -> None:
    with served_on(bench, children) as served:
        served.environment["ORCHESTRATOR_SWEEP_INTERVAL"] = "1"
        served.start()
        wait_for(lambda: served.runs(SWEEP_WORKFLOW, RunState.SUCCEEDED), "a first sweep that finds nothing")
        created(bench, EXPIRED, valid="-1 hour")
        wait_for(lambda: EXPIRED not in bench.logins(), "a later sweep")
        assert served.stop() == 0
    bench.assert_nothing_left()


def test_what_vault_has_given_up_is_counted_and_a_failed_lease_is_left_alone_until_its_pause_is_over(
    bench: Bench, children: ForkServer
) -> None:
    lease = left(bench)
    failed = [LeaseRevocationFailed(lease_id=lease.lease_id, error="no answer")] * 6
    record(bench, lease.run_id, failed)
    give_up(bench, lease.vault_lease_id)
    try:
        with served_on(bench, children) as served:
            served.start()
            wait_for(lambda: "orchestrator_leases_irrevocable 1.0" in figures(served), "the figure")
            wait_for(lambda: "orchestrator_leases_pending 1.0" in figures(served), "the other figure")
            wait_for(lambda: served.runs(SWEEP_WORKFLOW, RunState.SUCCEEDED), "all hooks to have had a turn")
            assert served.stop() == 0
        assert open_leases(bench)[0].failed_tries == 7, "it was not tried although the process is new"
    finally:
        statements = ["SELECT orchestrator.revoke('{{name}}')"]
        bench.vault.write_data("database/roles/feedback-read", data={"revocation_statements": statements})
        bench.vault.write_data("sys/leases/revoke-prefix/database/creds", data={"sync": True})


def left(bench: Bench) -> LeaseRecord:
    """A lease of a run that is over, whose login nobody could take back; Vault still cannot."""
    bench.vault.write_data("database/roles/feedback-read", data=BROKEN)
    bench.sql("REVOKE EXECUTE ON FUNCTION orchestrator.sweep(text) FROM orchestrator_sweeper")
    try:
        bench.run(STEP)
    finally:
        bench.sql("GRANT EXECUTE ON FUNCTION orchestrator.sweep(text) TO orchestrator_sweeper")
    (lease,) = open_leases(bench)
    return lease


def open_leases(bench: Bench) -> list[LeaseRecord]:
    with open_ledger(bench.config().ledger_url, clock=SystemClock()) as ledger:
        return list(ledger.leases(LeaseFilter(states=OPEN)))


def record(bench: Bench, run_id: str, events: list[LeaseRevocationFailed]) -> None:
    async def go() -> None:
        async with open_ledger(bench.config().ledger_url, clock=SystemClock()) as ledger:
            await ledger.append(run_id, await ledger.take_over(run_id), events)

    asyncio.run(go())
