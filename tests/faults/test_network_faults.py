"""A network that fails between the runner, Vault and the database: what was issued is gone, and the ledger says so.

One step with a database grant runs through proxies that fail on demand. After each fault the
database is asked for logins (`pg_roles`), Vault for leases, and the ledger for what it says of both.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from bench import Bench
from proxy import Answer, CutAfterForwarding, DropAnswer, Fault, Garbage, GarbledAnswer, Proxy
from waiting import wait_for

from orchestrator.assembly import open_services
from orchestrator.credentials.types import Attempt
from orchestrator.errors import ExitCode
from orchestrator.ledger.events import OrphansSwept, RunStarted
from orchestrator.ledger.ids import new_run_id, new_step_key
from orchestrator.ledger.lease import FINAL, LeaseState
from orchestrator.ledger.states import RunState
from orchestrator.recovery.open_leases import close_left_over, left_over
from orchestrator.redaction.redactor import Redactor
from orchestrator.runs.types import RunOutcome
from orchestrator.vault.config import VaultConfig

STEP = """
version: 1
name: faulty
agent: tester
steps:
  work:
    action: postgres.query
    grants:
      db: { kind: database, connection: support, role: feedback-read }
    with: { sql: SELECT 1 AS one }
    timeout: 15s
"""
SEALED = Answer(503, body=b'{"errors": ["Vault is sealed"]}')
EMPTY = GarbledAnswer(b"{}")


def issued(lease_duration: str, lease_id: str = '"database/creds/feedback-read/x"') -> GarbledAnswer:
    """The answer to an issuance that Vault did, with these two as JSON."""
    data = '{"username": "orc_work-0123456789ab_x", "password": "none"}'
    text = f'{{"lease_id": {lease_id}, "lease_duration": {lease_duration}, "data": {data}}}'
    return GarbledAnswer(text.encode())


def minted(lease_duration: str, accessor: str = '"none"') -> GarbledAnswer:
    auth = f'{{"client_token": "none", "accessor": {accessor}, "lease_duration": {lease_duration}, "renewable": true}}'
    return GarbledAnswer(f'{{"auth": {auth}}}'.encode())


DONE = {"token": LeaseState.REVOKED, "db": LeaseState.REVOKED}
NOT_CONFIRMED_YET = {"token": LeaseState.REVOKED, "db": LeaseState.REVOKING}
TOKEN_UNKNOWN = {"token": LeaseState.REVOKING, "db": LeaseState.FAILED}
NOTHING_ASKED = {"token": LeaseState.FAILED, "db": LeaseState.FAILED}


def about(part: str) -> Callable[[str], bool]:
    """Requests whose first line has this part."""
    return lambda line: part in line


LOGIN, MINT, ISSUE = about("/approle/login"), about("/auth/token/create/"), about("/database/creds/feedback-read")
REVOKE, ACCESSOR, GIVE_BACK = about("/sys/leases/revoke"), about("/revoke-accessor"), about("/revoke-self")


COMMIT = b"commit\x00"
"""What Vault says to the database at last when it makes a login."""

LATER = -180.0
"""As `settle`: three minutes have passed, and Vault has ended every request of before."""


@dataclass
class Network:
    """The bench, with a proxy between the runner and Vault, and one between Vault and PostgreSQL."""

    bench: Bench
    vault: Proxy
    database: Proxy

    def config(self, **changes: Any) -> VaultConfig:
        return replace(self.bench.provisioned.vault_config(), address=self.vault.address, **changes)

    def run(self, *, grace: float = 5.0, **changes: Any) -> RunOutcome:
        """One run of the step. Steps and sweeps reach the database directly."""
        return self.bench.run(STEP, vault=self.config(**changes), grace=grace)

    def states(self, outcome: RunOutcome) -> dict[str, LeaseState]:
        """What the ledger says of the step's own leases (not of those with which it was swept)."""
        of_step = [lease for lease in self.bench.history(outcome.run_id) if "sweep" not in lease.resource]
        found = {("token" if lease.grant_kind == "step-token" else lease.grant): lease.state for lease in of_step}
        assert len(found) == len(of_step)
        return found

    def swept(self) -> list[str]:
        """The logins that sweeps dropped, by the ledger's events."""
        return [role for event in self.bench.events if isinstance(event, OrphansSwept) for role in event.roles]

    def assert_gone(self) -> None:
        """No login and no session now, and no lease as soon as Vault has worked off its queue."""
        assert self.bench.logins() == []
        wait_for(lambda: not self.bench.vault_leases(), "Vault to drop the leases of the revoked token")
        self.bench.assert_nothing_left()

    def close_left_over(self, run_id: str) -> set[LeaseState]:
        """What `leases sweep` does, three minutes later; returns the states in which the leases are then."""

        async def go() -> None:
            config = self.bench.config(settle=LATER)
            async with open_services(config, redactor=Redactor()) as services:
                await close_left_over(services, left_over(services.reader))

        asyncio.run(go())
        return {lease.state for lease in self.bench.history(run_id)}


@pytest.fixture
def network(bench: Bench) -> Iterator[Network]:
    """The session's stack, reached through proxies, for one test; all faults that it asked for must have happened."""
    vault_at = urlsplit(bench.info.vault_address)
    assert vault_at.hostname
    assert vault_at.port
    postgres_at = (bench.info.postgres_host, bench.info.postgres_port)
    details = bench.vault.read("database/config/support")["data"]["connection_details"]
    with Proxy((vault_at.hostname, vault_at.port), http=True) as vault, Proxy(postgres_at) as database:
        direct = details["connection_url"]
        through = direct.replace(f":{bench.info.postgres_port}/", f":{database.port}/")
        assert through != direct
        bench.vault.write("database/config/support", connection_url=through)
        try:
            yield Network(bench, vault, database)
        finally:
            database.heal()
            bench.vault.write("database/config/support", connection_url=direct)


@pytest.mark.parametrize(
    ("fault", "times", "request_line"),
    [
        pytest.param(Answer(429, headers={"Retry-After": "1"}), 2, ISSUE, id="issuance-429-with-retry-after"),
        pytest.param(Answer(429), 2, MINT, id="minting-429"),
        pytest.param(SEALED, 2, ISSUE, id="issuance-sealed"),
        pytest.param(SEALED, 2, MINT, id="minting-sealed"),
        pytest.param(Answer(503), 2, LOGIN, id="login-503"),
        pytest.param(Answer(500), 1, LOGIN, id="login-500"),
        pytest.param(DropAnswer(), 1, LOGIN, id="login-answer-dropped"),
        pytest.param(Answer(500), 1, REVOKE, id="revocation-500"),
        pytest.param(Answer(503), 2, REVOKE, id="revocation-503"),
        pytest.param(DropAnswer(), 1, REVOKE, id="revocation-answer-dropped"),
        pytest.param(CutAfterForwarding(), 1, REVOKE, id="revocation-cut"),
        pytest.param(Garbage(), 1, REVOKE, id="revocation-garbage"),
        pytest.param(DropAnswer(), 1, ACCESSOR, id="token-revocation-answer-dropped"),
        pytest.param(DropAnswer(), 1, GIVE_BACK, id="giving-back-answer-dropped"),
    ],
)
def test_what_can_be_tried_again_is_and_the_run_succeeds(
    network: Network, fault: Fault, times: int, request_line: Callable[[str], bool]
) -> None:
    network.vault.fail(fault, times=times, when=request_line)
    outcome = network.run()
    assert (outcome.exit_code, outcome.state) == (ExitCode.DONE, RunState.SUCCEEDED), outcome.reason
    assert network.vault.unused == 0
    assert network.states(outcome) == DONE
    network.assert_gone()


@pytest.mark.parametrize(
    ("fault", "request_line", "states"),
    [
        pytest.param(Answer(500), ISSUE, DONE, id="issuance-500"),
        pytest.param(Answer(503), ISSUE, DONE, id="issuance-503-that-does-not-say-why"),
        pytest.param(GarbledAnswer(), ISSUE, DONE, id="issuance-not-json"),
        pytest.param(EMPTY, ISSUE, DONE, id="issuance-without-credentials"),
        pytest.param(Garbage(), ISSUE, NOT_CONFIRMED_YET, id="issuance-garbage"),
        pytest.param(DropAnswer(), ISSUE, NOT_CONFIRMED_YET, id="issuance-answer-dropped"),
        pytest.param(DropAnswer(), MINT, TOKEN_UNKNOWN, id="minting-answer-dropped"),
        pytest.param(Answer(500), MINT, TOKEN_UNKNOWN, id="minting-500"),
        pytest.param(EMPTY, MINT, TOKEN_UNKNOWN, id="minting-without-a-token"),
        pytest.param(EMPTY, LOGIN, NOTHING_ASKED, id="login-without-a-token"),
        pytest.param(issued("-1"), ISSUE, DONE, id="issuance-for-a-negative-time"),
        pytest.param(issued("true"), ISSUE, DONE, id="issuance-for-a-time-that-is-no-number"),
        pytest.param(issued("1" + "0" * 30), ISSUE, DONE, id="issuance-for-longer-than-any-clock-runs"),
        pytest.param(issued("300", lease_id="7"), ISSUE, DONE, id="issuance-with-a-lease-id-that-is-no-text"),
        pytest.param(issued("300", lease_id='""'), ISSUE, DONE, id="issuance-without-a-lease-id"),
        pytest.param(minted("-1"), MINT, TOKEN_UNKNOWN, id="minting-for-a-negative-time"),
        pytest.param(minted("60.5"), MINT, TOKEN_UNKNOWN, id="minting-for-a-part-of-a-second"),
        pytest.param(minted("60", accessor="null"), MINT, TOKEN_UNKNOWN, id="minting-without-an-accessor"),
    ],
)
def test_what_may_have_happened_is_not_asked_for_again_but_taken_back(
    network: Network, fault: Fault, request_line: Callable[[str], bool], states: dict[str, LeaseState]
) -> None:
    network.vault.fail(fault, when=request_line)
    outcome = network.run()
    assert (outcome.exit_code, outcome.state) == (ExitCode.UNREACHABLE, RunState.FAILED)
    assert "step `work`: grant `" in outcome.reason
    assert len([line for line in network.vault.requests if request_line(line)]) == 1 or request_line is LOGIN
    assert network.states(outcome) == states
    network.assert_gone()
    assert network.close_left_over(outcome.run_id) <= FINAL, "later it can be said of all of them what became of them"
    network.assert_gone()


def test_a_connection_cut_right_after_the_issuance_was_forwarded_leaves_nothing(network: Network) -> None:
    network.vault.fail(CutAfterForwarding(), when=ISSUE)
    outcome = network.run()
    assert (outcome.exit_code, outcome.state) == (ExitCode.UNREACHABLE, RunState.FAILED)
    assert network.states(outcome) in (DONE, NOT_CONFIRMED_YET), "by where in its work Vault was interrupted"
    network.assert_gone()
    assert network.close_left_over(outcome.run_id) <= FINAL


def test_a_vault_that_refuses_connections_for_two_seconds_is_waited_for(network: Network) -> None:
    network.vault.refuse(seconds=2.0)
    outcome = network.run()
    assert outcome.exit_code is ExitCode.DONE
    assert network.states(outcome) == DONE
    network.assert_gone()


def test_a_vault_that_refuses_connections_for_longer_than_the_step_may_take_ends_the_run(network: Network) -> None:
    network.vault.refuse()
    outcome = network.bench.run(STEP.replace("15s", "2s"), vault=network.config())
    assert (outcome.exit_code, outcome.state) == (ExitCode.UNREACHABLE, RunState.FAILED)
    assert network.states(outcome) == NOTHING_ASKED
    network.assert_gone()


def test_a_slow_network_is_only_slow(network: Network) -> None:
    network.vault.delay(to_server=0.1, to_client=0.1)
    network.database.delay(to_server=0.02, to_client=0.02)
    outcome = network.run()
    assert outcome.exit_code is ExitCode.DONE
    assert network.states(outcome) == DONE
    network.assert_gone()


def test_an_answer_that_never_comes_is_given_up_after_the_read_time_out_and_taken_back(network: Network) -> None:
    network.vault.fail(DropAnswer(close=False), when=ISSUE)
    outcome = network.run(read_timeout=1.0)
    assert outcome.exit_code is ExitCode.UNREACHABLE
    assert "gave no answer (ReadTimeout)" in outcome.reason
    assert network.states(outcome) == NOT_CONFIRMED_YET
    network.assert_gone()
    assert network.close_left_over(outcome.run_id) <= FINAL


@pytest.mark.parametrize(
    "answer", [Answer(500), Answer(200, b"{}"), Answer(200, b"")], ids=["500", "200-with-an-empty-object", "200-empty"]
)
def test_a_vault_that_takes_nothing_back_leaves_the_ledger_saying_revoking_until_it_does(
    network: Network, answer: Answer
) -> None:
    """Nothing can be confirmed within the grace: the run is done, but its exit code says that more is to be done."""
    network.vault.fail(answer, times=1000, when=lambda line: REVOKE(line) or ACCESSOR(line))
    outcome = network.run(grace=2.0)
    assert (outcome.exit_code, outcome.state) == (ExitCode.UNCONFIRMED, RunState.SUCCEEDED)
    assert network.states(outcome)["token"] is LeaseState.REVOKING
    assert {lease.lease_id for lease in outcome.unconfirmed} <= {
        lease.lease_id for lease in network.bench.history(outcome.run_id) if lease.state is LeaseState.REVOKING
    }
    network.vault.heal()
    assert network.close_left_over(outcome.run_id) <= FINAL
    network.assert_gone()


def test_a_token_of_the_runtimes_own_that_cannot_be_given_back_does_not_hide_how_the_run_ended(
    network: Network, caplog: pytest.LogCaptureFixture
) -> None:
    network.vault.fail(Answer(500), times=1000, when=GIVE_BACK)
    with caplog.at_level(logging.WARNING):
        outcome = network.run()
    assert (outcome.exit_code, outcome.state) == (ExitCode.DONE, RunState.SUCCEEDED)
    assert network.states(outcome) == DONE
    assert "own Vault token is not given back" in caplog.text
    network.assert_gone()


def test_a_login_that_cannot_be_tried_is_recorded_as_failed(network: Network) -> None:
    """A token file that is not there: Vault was never asked, so nothing may stay open in the ledger."""
    from orchestrator.vault.config import TokenFileAuth

    outcome = network.run(auth=TokenFileAuth(network.bench.directory / "missing"))
    assert outcome.exit_code is ExitCode.INVALID
    assert network.states(outcome) == NOTHING_ASKED
    assert network.vault.requests == []


class TestVaultLosesRoles:
    """What is to be feared: a client that goes away while Vault issues leaves a login that no lease belongs to."""

    def abandon(self, network: Network) -> str:
        """Ask for a login as a step would and go away when the database has made it, before Vault is told; returns the
        step key."""
        bench, key = network.bench, new_step_key("lost")
        network.database.silence_at(COMMIT)
        made = bench.vault.auth.token.create(policies=["step/faulty/work"], display_name=key, ttl="60s")["auth"]
        network.vault.fail(CutAfterForwarding(when=lambda: wait_for(lambda: roles(bench, key), "the login")))
        with pytest.raises(httpx.TransportError):
            httpx.get(
                f"{network.vault.address}/v1/database/creds/feedback-read",
                headers={"X-Vault-Token": made["client_token"]},
                trust_env=False,
                timeout=30,
            )
        bench.vault.auth.token.revoke_accessor(made["accessor"])
        return key

    def sweep(self, bench: Bench, key: str) -> tuple[str, ...]:
        async def go() -> tuple[str, ...]:
            async with open_services(bench.config(), redactor=Redactor()) as services:
                run_id = new_run_id()
                started = RunStarted(workflow="w", digest="", agent="a", trigger="test", inputs={}, steps=("lost",))
                fence = await services.ledger.begin_run(run_id, started)
                until = time.monotonic() + 30
                attempt = Attempt(run_id, fence, "w", "lost", 1, "a", key, (), "", until)
                assert services.broker.duties is not None
                return (await services.broker.duties.sweep(attempt, "support", [key], deadline=until)).dropped

        return asyncio.run(go())

    def test_logins_without_a_lease_stay_for_ever_until_they_are_swept(self, network: Network) -> None:
        bench = network.bench
        assert bench.run(STEP).exit_code is ExitCode.DONE  # installs the step's policy
        keys = [self.abandon(network) for _ in range(2)]
        assert network.database.unused == 0
        # Everything that Vault knows of is revoked, so what is left now Vault does not know of.
        bench.vault.write_data("sys/leases/revoke-prefix/database/creds/feedback-read", data={"sync": True})
        wait_for(lambda: not bench.vault_leases(), "Vault to have no lease")
        lost = bench.logins()
        try:
            assert lost, "Vault no longer loses roles: say so where the sweep is explained"
            assert {role.rsplit("_", 1)[0] for role in lost} == {f"orc_{key}" for key in keys}
            swept = [role for key in keys for role in self.sweep(bench, key)]
            assert sorted(swept) == lost
            assert bench.logins() == []
        finally:
            for role in bench.logins():
                bench.sql(f'DROP ROLE "{role}"')

    def test_the_runner_sweeps_what_vault_lost_before_the_step_is_over(self, network: Network) -> None:
        network.database.silence_at(COMMIT)
        made: list[str] = []
        seen = CutAfterForwarding(when=lambda: wait_for(lambda: made.extend(network.bench.logins()) or made, "it"))
        network.vault.fail(seen, when=ISSUE)
        outcome = network.run(grace=20.0)
        assert outcome.exit_code is ExitCode.UNREACHABLE
        assert network.swept() == made
        assert network.states(outcome) == DONE, "the database itself says that it is gone"
        network.assert_gone()


def roles(bench: Bench, key: str) -> list[str]:
    return [role for role in bench.logins() if role.startswith(f"orc_{key}_")]


class TestBetweenVaultAndTheDatabase:
    @pytest.mark.parametrize("forwarded", [False, True])
    def test_a_connection_cut_during_create_role_ends_the_run_and_leaves_nothing(
        self, network: Network, forwarded: bool
    ) -> None:
        network.database.cut_at(b'CREATE ROLE "orc_work-', forwarded=forwarded)
        outcome = network.run()
        assert (outcome.exit_code, outcome.state) == (ExitCode.UNREACHABLE, RunState.FAILED)
        assert network.database.unused == 0
        assert network.states(outcome)["db"] in (LeaseState.REVOKED, LeaseState.FAILED)
        assert network.states(outcome)["token"] is LeaseState.REVOKED
        network.assert_gone()

    def test_a_login_that_was_committed_without_vault_knowing_is_swept(self, network: Network) -> None:
        """The answer to COMMIT is lost: the role is there, Vault reports a failure and keeps no lease."""
        network.database.cut_at(COMMIT, forwarded=True)
        outcome = network.run()
        assert (outcome.exit_code, outcome.state) == (ExitCode.UNREACHABLE, RunState.FAILED)
        assert network.database.unused == 0
        assert len(network.swept()) == 1, "there was something to sweep"
        assert network.states(outcome) == DONE
        network.assert_gone()

    @pytest.mark.parametrize("forwarded", [False, True])
    def test_a_connection_cut_during_drop_role_is_tried_again(self, network: Network, forwarded: bool) -> None:
        network.database.cut_at(b"orchestrator.revoke('orc_work-", forwarded=forwarded)
        outcome = network.run()
        assert (outcome.exit_code, outcome.state) == (ExitCode.DONE, RunState.SUCCEEDED)
        assert network.database.unused == 0
        assert network.states(outcome) == DONE
        network.assert_gone()

    def test_a_database_that_vault_cannot_reach_to_drop_is_revoking_until_it_is_reached(self, network: Network) -> None:
        network.database.cut_at(b"orchestrator.revoke('orc_", forwarded=False, times=1000)
        outcome = network.run(grace=3.0)
        assert (outcome.exit_code, outcome.state) == (ExitCode.UNCONFIRMED, RunState.SUCCEEDED)
        open_ones = [lease for lease in network.bench.history(outcome.run_id) if lease.state is LeaseState.REVOKING]
        assert open_ones
        assert {lease.lease_id for lease in outcome.unconfirmed} == {lease.lease_id for lease in open_ones}
        assert network.bench.logins(), "the ledger does not call revoked what the database still has"
        network.database.heal()
        assert network.close_left_over(outcome.run_id) <= FINAL
        assert network.bench.logins() == []
        # Vault tries a lease again whose login the sweep has dropped, at intervals of its own: have it do so now.
        network.bench.vault.write_data("sys/leases/revoke-prefix/database/creds", data={"sync": True})
        network.assert_gone()
