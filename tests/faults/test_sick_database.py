"""A database that takes connections and says nothing more: it holds up itself, and no other one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

import pytest
from bench import Bench
from ephemeral import Working, working
from proxy import Proxy

from orchestrator.assembly import open_services
from orchestrator.credentials.types import Confirm
from orchestrator.errors import ExitCode
from orchestrator.ledger.ids import new_run_id
from orchestrator.ledger.lease import FINAL, LeaseState
from orchestrator.ledger.types import LeaseRecord
from orchestrator.recovery.closing_pass import Leftover
from orchestrator.recovery.open_leases import close_left_over, left_over
from orchestrator.recovery.orphans import ConnectionSwept, sweep_orphans
from orchestrator.redaction.redactor import Redactor

HEALTHY = """
version: 1
name: healthy
agent: tester
steps:
  work:
    action: postgres.query
    grants:
      db: { kind: database, connection: support, role: feedback-read }
    with: { sql: SELECT 1 AS one }
"""
SICK = """
version: 1
name: sick
agent: tester
steps:
  work:
    action: postgres.query
    grants:
      db: {{ kind: database, connection: sick, role: sick-read }}
    with: {{ sql: SELECT pg_advisory_lock_shared(4711)::text AS held }}
    timeout: 60s
"""

UNPROVISIONED = {"sick": Confirm.VAULT}
"""Nothing of ours is installed there, so that database cannot be asked."""


@dataclass
class Sick:
    """The bench with a second connection, `sick`, which Vault reaches through a proxy."""

    bench: Bench
    proxy: Proxy

    @property
    def endpoints(self) -> dict[str, str]:
        """Steps reach either connection directly: only Vault is held up."""
        return {**self.bench.provisioned.endpoints, "sick": self.bench.provisioned.endpoints["support"]}

    def falls_silent(self) -> None:
        """Nothing that the database says arrives any more; what is open stays open."""
        self.proxy.delay(to_client=3600)

    def recovers(self) -> None:
        self.proxy.heal()
        self.proxy.cut()

    def close(self) -> list[Leftover]:
        """What `serve` does with left-over leases, with little patience."""

        async def go() -> list[Leftover]:
            config = self.bench.config(endpoints=self.endpoints, grace=2.0, confirm=UNPROVISIONED)
            async with open_services(config, redactor=Redactor()) as services:
                return await close_left_over(services, left_over(services.reader), seconds=2.0)

        return asyncio.run(go())

    def lease(self, run_id: str) -> LeaseRecord:
        (lease,) = [each for each in self.bench.history(run_id) if each.grant == "db"]
        return lease


@pytest.fixture
def sick(bench: Bench) -> Iterator[Sick]:
    vault = bench.vault
    scope = bench.sample_grant("read").scope_role
    bench.sql("CREATE ROLE sick_vault LOGIN CREATEROLE PASSWORD 'of-this-test-only'")
    bench.sql(f"GRANT {scope} TO sick_vault WITH ADMIN TRUE, INHERIT FALSE, SET FALSE")
    bench.sql("GRANT CONNECT ON DATABASE support TO sick_vault")
    like = vault.read("database/config/support")["data"]["connection_details"]
    with Proxy((bench.info.postgres_host, bench.info.postgres_port)) as proxy:
        vault.write_data(
            "database/config/sick",
            data={
                "plugin_name": "postgresql-database-plugin",
                "allowed_roles": ["sick-read"],
                "connection_url": f"postgresql://{{{{username}}}}:{{{{password}}}}@127.0.0.1:{proxy.port}/support",
                "username": "sick_vault",
                "password": "of-this-test-only",
                "username_template": like["username_template"],
                "password_policy": "recognisable",
            },
        )
        role = vault.read("database/roles/feedback-read")["data"]
        vault.write_data(
            "database/roles/sick-read",
            data={**role, "db_name": "sick", "revocation_statements": ['DROP ROLE IF EXISTS "{{name}}"']},
        )
        try:
            yield Sick(bench, proxy)
        finally:
            proxy.heal()
            proxy.cut()
            vault.delete("database/roles/sick-read")
            vault.delete("database/config/sick")
            bench.sql("DROP OWNED BY sick_vault; DROP ROLE sick_vault")


def left_behind(sick: Sick) -> Working:
    """A run whose login could not be taken back, since its database fell silent."""
    with working(sick.bench, text=SICK, endpoints=sick.endpoints, grace=2.0, confirm=UNPROVISIONED) as work:
        sick.falls_silent()
    assert work.outcome.exit_code is ExitCode.UNCONFIRMED
    assert work.login in sick.bench.logins()
    return work


def left_healthy(bench: Bench) -> str:
    """A run whose login was not taken back either, in a database that answers again."""
    before = bench.vault.read("database/roles/feedback-read")["data"]
    bench.vault.write_data("database/roles/feedback-read", data={**before, "revocation_statements": ["SELECT 1/0"]})
    bench.sql("REVOKE EXECUTE ON FUNCTION orchestrator.sweep(text) FROM orchestrator_sweeper")
    try:
        outcome = bench.run(HEALTHY)
    finally:
        bench.vault.write_data("database/roles/feedback-read", data=before)
        bench.sql("GRANT EXECUTE ON FUNCTION orchestrator.sweep(text) TO orchestrator_sweeper")
    assert outcome.exit_code is ExitCode.UNCONFIRMED
    return outcome.run_id


def test_the_leases_of_the_others_are_closed_while_it_is_waited_for(sick: Sick) -> None:
    healthy = left_healthy(sick.bench)
    work = left_behind(sick)
    sick.close()
    other, own = sick.lease(healthy), sick.lease(work.outcome.run_id)
    assert (other.state, own.state) == (LeaseState.REVOKED, LeaseState.REVOKING)
    assert sick.bench.logins() == [work.login]
    assert other.closed_at is not None
    assert own.last_try_at is not None
    assert other.closed_at < own.last_try_at, "the sick one is newer, so one after the other it would come first"
    assert own.failed_tries == 2
    assert "gave no answer" in own.reason
    sick.recovers()
    assert all(each.confirmed for each in sick.close())
    assert {lease.state for lease in sick.bench.history(work.outcome.run_id)} <= FINAL
    sick.bench.assert_nothing_left()


def test_waiting_for_it_costs_no_further_logins(sick: Sick) -> None:
    """A sweep of a silent database would itself need a login there, which could not be taken back either."""
    work = left_behind(sick)
    sick.close()
    assert [lease.resource for lease in sick.bench.history(work.outcome.run_id) if "sweep" in lease.resource] == []
    sick.recovers()
    assert all(each.confirmed for each in sick.close())


def test_a_sweep_gives_up_on_a_database_that_does_not_answer_and_leaves_nothing_of_its_own(bench: Bench) -> None:
    address = urlsplit(bench.provisioned.endpoints["support"])
    with Proxy((bench.info.postgres_host, bench.info.postgres_port)) as proxy:
        proxy.swallow(1)
        silent = address._replace(netloc=f"127.0.0.1:{proxy.port}").geturl()
        run_id = new_run_id()

        async def go() -> tuple[ConnectionSwept, ...] | None:
            config = replace(bench.config(), endpoints={"support": silent})
            async with open_services(config, redactor=Redactor()) as services:
                return await sweep_orphans(services, run_id)

        (found,) = asyncio.run(go()) or ()
        assert "the orchestrator's own sweep in `support` failed" in found.error
    assert {lease.state for lease in bench.history(run_id)} <= FINAL
    bench.assert_nothing_left()
