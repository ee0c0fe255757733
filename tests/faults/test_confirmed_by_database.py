"""A login is gone when its database says so: Vault's answer is one witness, and it has been wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

import psycopg
import pytest
from bench import Bench
from proxy import Answer, Proxy

from orchestrator.assembly import open_services
from orchestrator.clock import SystemClock
from orchestrator.credentials import run_leases
from orchestrator.credentials.types import SWEEP_GRANT, Confirm
from orchestrator.errors import ExitCode
from orchestrator.ledger.lease import OPEN, LeaseState
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.types import LeaseRecord
from orchestrator.recovery.open_leases import close_left_over, left_over
from orchestrator.redaction.redactor import Redactor
from orchestrator.runs.types import RunOutcome

STEP = """
    action: postgres.query
    grants: { db: { kind: database, connection: support, role: feedback-read } }
    with: { sql: SELECT 1 AS one }
"""
THREE = f"""
version: 1
name: three_steps
agent: tester
steps:
  one:{STEP}
  two:{STEP}    needs: [one]
  three:{STEP}    needs: [two]
"""


def events(bench: Bench, run_id: str, lease_id: str) -> list[str]:
    """What the ledger has of a lease, in words."""
    with open_ledger(bench.config().ledger_url, clock=SystemClock()) as ledger:
        return [
            f"{event.kind} {event.data.get('confirmed_by', '')}".strip()
            for event in ledger.events(run_id, lease_id=lease_id)
        ]


def kinds(bench: Bench, run_id: str) -> list[str]:
    with open_ledger(bench.config().ledger_url, clock=SystemClock()) as ledger:
        return [event.kind for event in ledger.events(run_id)]


def steps_logins(bench: Bench, run_id: str) -> list[LeaseRecord]:
    return [lease for lease in bench.history(run_id) if lease.grant == "db"]


def made_to_look(bench: Bench, run_id: str) -> list[LeaseRecord]:
    return [lease for lease in bench.history(run_id) if lease.grant == SWEEP_GRANT]


@dataclass
class Lying:
    """Vault behind a proxy that can say of a revocation what is not so."""

    bench: Bench
    proxy: Proxy

    def run(self, text: str, **changes: object) -> RunOutcome:
        vault = replace(self.bench.provisioned.vault_config(), address=self.proxy.address)
        return self.bench.run(text, vault=vault, **changes)

    def say(self, answer: Answer, *, times: int) -> None:
        """Answer revocations of leases, and as many of step tokens, without carrying them out."""
        self.proxy.fail(answer, times=times, when=lambda line: "/sys/leases/revoke" in line)
        self.proxy.fail(answer, times=times, when=lambda line: "/revoke-accessor" in line)

    def say_of_leases_alone(self) -> None:
        """Answer one revocation of a lease, and of its token, which would take the lease along, with what is not so."""
        self.say(Answer(204, b""), times=1)


@pytest.fixture
def lying(bench: Bench) -> Iterator[Lying]:
    at = urlsplit(bench.info.vault_address)
    with Proxy((str(at.hostname), int(at.port or 0)), http=True) as proxy:
        yield Lying(bench, proxy)
    bench.vault.write_data("sys/leases/revoke-prefix/database/creds/feedback-read", data={"sync": True})


@contextmanager
def nobody_may_look(bench: Bench) -> Iterator[None]:
    """The database refuses to be asked by the orchestrator."""
    bench.sql("REVOKE EXECUTE ON FUNCTION orchestrator.sweep(text) FROM orchestrator_sweeper")
    try:
        yield
    finally:
        bench.sql("GRANT EXECUTE ON FUNCTION orchestrator.sweep(text) TO orchestrator_sweeper")


def recover(bench: Bench) -> None:
    async def go() -> None:
        async with open_services(bench.config(), redactor=Redactor()) as services:
            await close_left_over(services, left_over(services.reader))

    asyncio.run(go())


def test_the_database_is_asked_once_for_all_steps_and_both_witnesses_are_on_record(bench: Bench) -> None:
    outcome = bench.run(THREE)
    assert outcome.exit_code is ExitCode.DONE
    logins = steps_logins(bench, outcome.run_id)
    assert len(logins) == 3
    for lease in logins:
        assert events(bench, outcome.run_id, lease.lease_id)[-4:] == [
            "lease.revoking",
            "lease.vault_revoked",
            "lease.login_tried",
            "lease.revoked database",
        ]
    assert len(made_to_look(bench, outcome.run_id)) == 1
    assert "orphans.swept" not in kinds(bench, outcome.run_id), "what was found as expected is no orphan"
    assert kinds(bench, outcome.run_id)[-1] == "run.finished"
    bench.assert_nothing_left()


def swept(bench: Bench, run_id: str) -> list[str]:
    """The logins that a run's end found in the database and dropped."""
    with open_ledger(bench.config().ledger_url, clock=SystemClock()) as ledger:
        found = [event.data["roles"] for event in ledger.events(run_id) if event.kind == "orphans.swept"]
    return [str(role) for roles in found if isinstance(roles, list) for role in roles]


def test_a_login_that_lives_although_vault_said_revoked_is_found_and_dropped(lying: Lying) -> None:
    lying.say(Answer(204, b""), times=1)
    outcome = lying.run(THREE)
    assert lying.bench.logins() == []
    assert lying.bench.sessions() == []
    assert outcome.exit_code is ExitCode.DONE
    (first, *_) = steps_logins(lying.bench, outcome.run_id)
    assert swept(lying.bench, outcome.run_id) == [first.subject]
    assert events(lying.bench, outcome.run_id, first.lease_id)[-3:] == [
        "lease.vault_revoked",
        "lease.login_tried",
        "lease.revoked database",
    ]


NO_CONFIRMATION = [
    pytest.param(Answer(200, b"{}"), id="empty object"),
    pytest.param(Answer(200, b""), id="nothing"),
    pytest.param(Answer(202, b""), id="accepted"),
    pytest.param(Answer(200, b"[]"), id="not even an object"),
]


@pytest.mark.parametrize("answer", NO_CONFIRMATION)
def test_what_is_no_confirmation_of_vaults_is_asked_again(lying: Lying, answer: Answer) -> None:
    lying.say(answer, times=1)
    outcome = lying.run(THREE)
    assert outcome.exit_code is ExitCode.DONE
    assert swept(lying.bench, outcome.run_id) == [], "the second time Vault did it"
    lying.bench.assert_nothing_left()


@pytest.mark.parametrize("answer", NO_CONFIRMATION)
def test_where_no_confirmation_of_vaults_is_to_be_had_nothing_is_called_revoked(lying: Lying, answer: Answer) -> None:
    lying.say(answer, times=10_000)
    one = lying.run(THREE.split("  two:")[0], grace=1.0)
    assert one.exit_code is ExitCode.UNCONFIRMED
    (login,) = steps_logins(lying.bench, one.run_id)
    assert login.state is LeaseState.REVOKING
    lying.proxy.heal()
    recover(lying.bench)
    assert lying.bench.logins() == []
    assert not [lease for lease in lying.bench.history(one.run_id) if lease.state in OPEN]


def test_what_the_database_was_not_asked_is_not_called_revoked_and_the_exit_code_says_so(bench: Bench) -> None:
    with nobody_may_look(bench):
        outcome = bench.run(THREE)
    assert outcome.exit_code is ExitCode.UNCONFIRMED
    assert bench.logins() == [], "Vault did revoke them"
    logins = steps_logins(bench, outcome.run_id)
    assert {lease.state for lease in logins} == {LeaseState.REVOKING}
    assert all("Vault has revoked it, but the database `support` could not be asked" in each.reason for each in logins)
    recover(bench)
    again = steps_logins(bench, outcome.run_id)
    assert {lease.state for lease in again} == {LeaseState.REVOKED}
    assert all(events(bench, outcome.run_id, each.lease_id)[-1] == "lease.revoked database" for each in again)
    assert not [lease for lease in bench.history(outcome.run_id) if lease.state in OPEN]


def test_where_the_database_cannot_be_reached_vaults_word_is_taken_if_the_settings_say_so(bench: Bench) -> None:
    with nobody_may_look(bench):
        outcome = bench.run(THREE, confirm={"support": Confirm.VAULT})
    assert outcome.exit_code is ExitCode.DONE
    (one, *_) = steps_logins(bench, outcome.run_id)
    assert events(bench, outcome.run_id, one.lease_id)[-1] == "lease.revoked vault"
    assert made_to_look(bench, outcome.run_id) == []


def test_a_run_that_goes_on_for_long_asks_meanwhile(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_leases, "CONFIRM_SECONDS", 0.01)
    text = THREE.replace("needs: [two]\n", "needs: [two]\n    timeout: 60s\n").rsplit("SELECT 1 AS one", 1)
    with psycopg.connect(bench.info.support_dsn.reveal(), autocommit=True) as gate:
        gate.execute("SELECT pg_advisory_lock(4712)")
        waits = "SELECT pg_advisory_lock_shared(4712)::text AS held".join(text)
        outcome = asyncio.run(until_confirmed(bench, waits, gate))
    assert outcome.exit_code is ExitCode.DONE
    assert len(made_to_look(bench, outcome.run_id)) >= 2
    bench.assert_nothing_left()


async def until_confirmed(bench: Bench, text: str, gate: psycopg.Connection) -> RunOutcome:
    """Run, and open the gate for the last step when the first one's login is on record as gone by the database."""
    running = asyncio.create_task(asyncio.to_thread(bench.run, text))

    def confirmed() -> bool:
        return any(getattr(event, "confirmed_by", "") == "database" for event in list(bench.events))

    async with asyncio.timeout(60):
        while not confirmed():
            assert not running.done()
            await asyncio.sleep(0.01)
    await asyncio.to_thread(gate.execute, "SELECT pg_advisory_unlock(4712)")
    return await running


def test_several_runs_that_somebody_left_are_looked_for_with_one_login(bench: Bench) -> None:
    with nobody_may_look(bench):
        runs = [bench.run(THREE).run_id for _ in range(3)]
    before = sum(len(made_to_look(bench, run_id)) for run_id in runs)
    recover(bench)
    assert {lease.state for run_id in runs for lease in bench.history(run_id)} == {LeaseState.REVOKED}
    assert sum(len(made_to_look(bench, run_id)) for run_id in runs) == before + 1
    bench.assert_nothing_left()


def test_the_next_step_does_not_wait_for_the_end_of_the_step_token(lying: Lying) -> None:
    """The revocation of the first step's token is refused until the second step has its login."""
    seen: list[str] = []

    def held_up(line: str) -> bool:
        if "/database/creds/" in line:
            seen.append(line)
        return "/revoke-accessor" in line and len(seen) < 2

    lying.proxy.fail(Answer(503, headers={"Retry-After": "0"}), times=10_000, when=held_up)
    outcome = lying.run(THREE)
    assert outcome.exit_code is ExitCode.DONE
    order = [event.kind for event in lying.bench.events if getattr(event, "kind", "") == "run.finished"]
    assert order == ["run.finished"]
    assert {lease.state for lease in lying.bench.history(outcome.run_id)} == {LeaseState.REVOKED}
    lying.bench.assert_nothing_left()
