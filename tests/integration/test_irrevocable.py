"""What Vault has given up revoking is found, told, and taken back through the database where it is ours."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

import hvac
import hvac.exceptions
import pytest
from bench import Bench
from fork_server import orchestrator
from waiting import wait_for

from orchestrator.assembly import open_services
from orchestrator.clock import SystemClock
from orchestrator.errors import ExitCode
from orchestrator.ledger.events import OrphansSwept
from orchestrator.ledger.lease import LeaseState
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.types import LeaseRecord
from orchestrator.recovery.irrevocable import Irrevocable, close_irrevocable
from orchestrator.redaction.redactor import Redactor
from orchestrator.runs.types import RunOutcome, Services
from orchestrator.vault.faults import VaultRefused

T = TypeVar("T")
STEP = """
version: 1
name: given_up
agent: tester
steps:
  work:
    action: postgres.query
    grants:
      db: { kind: database, connection: support, role: feedback-read }
    with: { sql: SELECT 1 AS one }
"""
BROKEN = {"revocation_statements": ["SELECT 1/0"]}


def listed(bench: Bench) -> list[str]:
    answer = bench.vault.adapter.get("/v1/sys/leases?type=irrevocable")["data"]
    return [each["lease_id"] for each in answer["leases"] or []]


def give_up(bench: Bench, vault_lease_id: str) -> None:
    """Have Vault use up its tries: each revocation that is only queued is one, without its usual pause."""

    def tried_once_more() -> bool:
        if vault_lease_id in listed(bench):
            return True
        bench.vault.adapter.put("/v1/sys/leases/revoke", json={"lease_id": vault_lease_id, "sync": False})
        return False

    wait_for(tried_once_more, "Vault to give up")


@pytest.fixture
def broken(bench: Bench) -> Iterator[Bench]:
    """The bench, where Vault cannot revoke; at the end it can, and has."""
    before = bench.vault.read("database/roles/feedback-read")["data"]
    bench.vault.write_data("database/roles/feedback-read", data={**before, **BROKEN})
    yield bench
    bench.vault.write_data("database/roles/feedback-read", data=before)
    bench.vault.write_data("sys/leases/revoke-prefix/database/creds", data={"sync": True})
    assert listed(bench) == []


def repair(bench: Bench) -> None:
    statements = ["SELECT orchestrator.revoke('{{name}}')"]
    bench.vault.write_data("database/roles/feedback-read", data={"revocation_statements": statements})


def database_lease(bench: Bench, outcome: RunOutcome) -> LeaseRecord:
    (lease,) = [each for each in bench.history(outcome.run_id) if each.grant == "db"]
    return lease


def with_services(bench: Bench, work: Callable[[Services], Coroutine[Any, Any, T]], **changes: Any) -> T:
    async def go() -> T:
        async with open_services(bench.config(**changes), redactor=Redactor()) as services:
            return await work(services)

    return asyncio.run(go())


def close(bench: Bench, *, at_once: bool = True, **changes: Any) -> tuple[Irrevocable, ...]:
    return with_services(bench, lambda services: close_irrevocable(services, at_once=at_once), **changes)


def left_open(bench: Bench) -> LeaseRecord:
    """A lease of a run that is over, which neither Vault nor the database could confirm gone, and Vault gives up."""
    bench.sql("REVOKE EXECUTE ON FUNCTION orchestrator.sweep(text) FROM orchestrator_sweeper")
    try:
        outcome = bench.run(STEP)
    finally:
        bench.sql("GRANT EXECUTE ON FUNCTION orchestrator.sweep(text) TO orchestrator_sweeper")
    assert outcome.exit_code is ExitCode.UNCONFIRMED
    lease = database_lease(bench, outcome)
    assert (lease.state, bench.logins()) == (LeaseState.REVOKING, [lease.subject])
    give_up(bench, lease.vault_lease_id)
    return lease


def test_one_that_is_ours_is_taken_back_through_the_database_and_the_ledger_says_why(broken: Bench) -> None:
    lease = left_open(broken)
    (found,) = close(broken)
    assert broken.logins() == []
    assert (found.vault_lease_id, found.detail) == (
        lease.vault_lease_id,
        "its login is gone; only Vault's record is left",
    )
    assert "division by zero" in found.error
    with open_ledger(broken.config().ledger_url, clock=SystemClock()) as ledger:
        assert ledger.verify(lease.run_id) is None
        events = [each.data for each in ledger.events(lease.run_id, lease_id=lease.lease_id)]
        swept = [each.data["roles"] for each in ledger.events(lease.run_id) if each.kind == OrphansSwept.kind]
    assert "Vault has given up revoking it: " in str(events[-2]["reason"])
    assert events[-1]["confirmed_by"] == "database"
    assert swept[-1] == [lease.subject]


def test_a_scheduler_waits_for_the_pause_between_tries_and_an_operator_does_not(broken: Bench) -> None:
    lease = left_open(broken)
    (found,) = close(broken, at_once=False)
    assert found.detail == "to be taken back through its database"
    assert broken.logins() == [lease.subject]
    close(broken, at_once=True)
    assert broken.logins() == []


def test_when_the_cause_is_repaired_vault_is_asked_again_and_lets_go(broken: Bench) -> None:
    outcome = broken.run(STEP)
    lease = database_lease(broken, outcome)
    assert (lease.state, broken.logins()) == (LeaseState.REVOKED, []), "the database confirmed it when the step ended"
    give_up(broken, lease.vault_lease_id)
    assert [each.lease and each.lease.run_id for each in close(broken)] == [outcome.run_id]
    repair(broken)
    assert close(broken) == ()
    assert listed(broken) == []


def test_one_of_somebody_else_is_told_and_left_alone(broken: Bench) -> None:
    theirs = broken.vault.read("database/creds/feedback-read")["lease_id"]
    give_up(broken, theirs)
    logins = broken.logins()
    assert len(logins) == 1
    (found,) = close(broken)
    assert (found.vault_lease_id, found.lease, found.detail) == (theirs, None, "not of this ledger")
    assert broken.logins() == logins
    repair(broken)


def test_the_runtime_sees_the_list_but_may_not_have_vault_forget(broken: Bench) -> None:
    client = hvac.Client(broken.info.vault_address)
    client.auth.approle.login(broken.provisioned.role_id, broken.provisioned.secret_id.reveal())
    theirs = broken.vault.read("database/creds/feedback-read")["lease_id"]
    give_up(broken, theirs)
    shown = client.adapter.get("/v1/sys/leases?type=irrevocable")["data"]["leases"]
    assert [set(each) for each in shown] == [{"lease_id", "mount_id", "error"}]
    for method, path in (
        ("put", f"sys/leases/revoke-force/{theirs}"),
        ("list", "sys/leases/lookup/database/creds/feedback-read"),
        ("put", "sys/leases/lookup"),
    ):
        with pytest.raises(hvac.exceptions.Forbidden):
            client.adapter.request(method, f"/v1/{path}", json={"lease_id": theirs})
    # What the hint says that an admin does, once the login is gone for certain.
    broken.sql("SELECT orchestrator.revoke(rolname) FROM pg_roles WHERE rolname LIKE 'orc\\_%'")
    broken.vault.adapter.put(f"/v1/sys/leases/revoke-force/{theirs}")
    assert listed(broken) == []


class TestCommand:
    def sweep(self, bench: Bench, *options: str) -> subprocess.CompletedProcess[str]:
        environment = bench.environment()
        return subprocess.run(
            [*orchestrator(), "leases", "sweep", *options],
            env={**environment, "ORCHESTRATOR_POLICY": "allow-all"},
            capture_output=True,
            text=True,
        )

    def test_a_sweep_lists_them_with_the_run_the_reason_and_what_an_admin_does(self, broken: Bench) -> None:
        lease = left_open(broken)
        told = self.sweep(broken)
        assert told.returncode == 0, "nothing is left that anybody could use"
        for part in (lease.vault_lease_id, lease.run_id, "its login is gone", "division by zero", "revoke -force"):
            assert part in told.stdout
        (found,) = json.loads(self.sweep(broken, "--json").stdout)["irrevocable"]
        assert found["vault_lease_id"] == lease.vault_lease_id
        assert found["lease"]["lease_id"] == lease.lease_id
        assert broken.logins() == []

    def test_a_runtime_that_may_not_see_the_list_says_so_and_sweeps_the_rest(self, broken: Bench) -> None:
        lease = left_open(broken)
        policy = broken.vault.sys.read_policy("orchestrator-runtime")["data"]["rules"]
        broken.vault.sys.create_or_update_policy("orchestrator-runtime", policy.replace('"read", "sudo"', '"deny"'))
        try:
            with pytest.raises(VaultRefused):
                close(broken)
            told = self.sweep(broken)
        finally:
            broken.vault.sys.create_or_update_policy("orchestrator-runtime", policy)
        assert told.returncode == int(ExitCode.UNCONFIRMED)
        assert "what Vault has given up revoking could not be listed" in told.stdout
        assert lease.lease_id in told.stdout
        assert broken.logins() == []
