"""The wall clock jumps by an hour, either way: the printed times change, and nothing else does.

In the middle of a run, in the middle of a recovery, and between two processes. What is certain of a lease is what
the database, Vault and monotonic clocks say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest
from bench import Bench
from fork_server import ForkServer
from proxy import DropAnswer, Proxy

from orchestrator.actions.catalog import catalog
from orchestrator.assembly import open_services
from orchestrator.clock import SystemClock
from orchestrator.errors import ExitCode
from orchestrator.ledger.events import LeaseRenewed, LeaseRequested
from orchestrator.ledger.ids import new_run_id
from orchestrator.ledger.lease import FINAL, LeaseState
from orchestrator.ledger.states import RunState
from orchestrator.recovery.open_leases import close_left_over, left_over
from orchestrator.redaction.redactor import Redactor
from orchestrator.runs.types import RunOutcome
from orchestrator.workflow.loader import load_text

HOUR = timedelta(hours=1)
WAYS = [pytest.param(HOUR, id="forward"), pytest.param(-HOUR, id="back")]
LATER = -600.0
"""As `settle`: ten minutes have passed."""

DB = "{ kind: database, connection: support, role: feedback-read }"
RUN = f"""
version: 1
name: clocks
agent: tester
steps:
  read:
    action: postgres.query
    grants: {{ db: {DB} }}
    with: {{ sql: SELECT 'Danke' AS text }}
    outputs: [rows]
  translate:
    action: http.request
    grants:
      api: {{ kind: token, audience: translation-api, scope: [translate] }}
    with:
      method: POST
      url: ${{{{ endpoints.translation }}}}/v1/translate
      bearer: api
      json: {{ target: en, messages: [{{ id: 1, comment: Danke }}] }}
  last:
    needs: [read, translate]
    action: postgres.query
    grants: {{ db: {DB} }}
    with: {{ sql: SELECT 1 }}
"""
LONG = """
version: 1
name: clocks_renewed
agent: tester
steps:
  work:
    action: postgres.query
    grants:
      db:
        kind: database
        connection: support
        ttl: 3s
        privileges:
          - select: customer_feedback
            columns: [id]
    with: { sql: "SELECT pg_sleep(0.5), (SELECT max(id) FROM customer_feedback) FROM generate_series(1, 10)" }
    timeout: 20s
"""


class Jumping(SystemClock):
    """The wall clock jumps when it is read for the n-th time, and stays wrong."""

    def __init__(self, by: timedelta, *, reading: int = 1) -> None:
        self._by = by
        self._left = reading

    def now(self) -> datetime:
        self._left -= 1
        return super().now() + (self._by if self._left <= 0 else timedelta())


@pytest.mark.parametrize("by", WAYS)
@pytest.mark.parametrize("reading", [1, 8, 20])
def test_a_jump_in_the_middle_of_a_run_changes_nothing(bench: Bench, by: timedelta, reading: int) -> None:
    """The service that gets the token checks its times: they are right although ours are not."""
    outcome = bench.run(RUN, clock=Jumping(by, reading=reading))
    assert (outcome.exit_code, outcome.state) == (ExitCode.DONE, RunState.SUCCEEDED), outcome.reason
    states = {lease.grant_kind: lease.state for lease in bench.history(outcome.run_id)}
    assert states == {
        "database": LeaseState.REVOKED,
        "token": LeaseState.ENDED,
        "step-token": LeaseState.REVOKED,
    }
    bench.assert_nothing_left()


@pytest.mark.parametrize("by", WAYS)
def test_a_jump_between_two_renewals_changes_nothing(bench: Bench, by: timedelta) -> None:
    outcome = bench.run(LONG, clock=Jumping(by, reading=12))
    assert outcome.exit_code is ExitCode.DONE, outcome.reason
    assert len([event for event in bench.events if isinstance(event, LeaseRenewed)]) >= 2
    assert {lease.state for lease in bench.history(outcome.run_id)} == {LeaseState.REVOKED}
    bench.assert_nothing_left()


@dataclass
class Lost:
    """A bench, and a proxy that loses the answer to an issuance."""

    bench: Bench
    proxy: Proxy

    def run(self, clock: SystemClock, *, of: str = "/database/creds/feedback-read") -> RunOutcome:
        """A run whose lease may or may not exist when it ends."""
        self.proxy.fail(DropAnswer(), when=lambda line: of in line)
        vault = replace(self.bench.provisioned.vault_config(), address=self.proxy.address)
        text = RUN.split("  translate:")[0]
        outcome = self.bench.run(text, vault=vault, clock=clock)
        assert outcome.exit_code is ExitCode.UNREACHABLE
        return outcome

    def sweep(self, times: int = 1, **changes: Any) -> None:
        """What `leases sweep` does, in a process of its own; with `times` as `serve` does it again and again."""

        async def go() -> None:
            async with open_services(self.bench.config(**changes), redactor=Redactor()) as services:
                for _ in range(times):
                    await close_left_over(services, left_over(services.reader))

        asyncio.run(go())

    def state(self, outcome: RunOutcome, grant: str = "db") -> LeaseState:
        return next(lease.state for lease in self.bench.history(outcome.run_id) if lease.grant == grant)


@pytest.fixture
def lost(bench: Bench) -> Iterator[Lost]:
    at = urlsplit(bench.info.vault_address)
    assert at.hostname
    assert at.port
    with Proxy((at.hostname, at.port), http=True) as proxy:
        yield Lost(bench, proxy)


@pytest.mark.parametrize("by", WAYS)
def test_a_jump_between_two_processes_calls_nothing_gone_too_early(lost: Lost, by: timedelta) -> None:
    """The second process sees a request of an hour ago, or of the future: neither is true."""
    outcome = lost.run(SystemClock())
    lost.sweep(clock=Jumping(by))
    assert lost.state(outcome) is LeaseState.REVOKING
    lost.sweep(clock=Jumping(by), settle=LATER)
    assert lost.state(outcome) is LeaseState.REVOKED


@pytest.mark.parametrize("by", WAYS)
def test_a_clock_that_was_wrong_when_it_was_recorded_calls_nothing_gone_too_early(lost: Lost, by: timedelta) -> None:
    outcome = lost.run(Jumping(by))
    lost.sweep()
    assert lost.state(outcome) is LeaseState.REVOKING
    lost.sweep(settle=LATER)
    assert lost.state(outcome) is LeaseState.REVOKED


@pytest.mark.parametrize("by", WAYS)
def test_a_jump_in_the_middle_of_a_recovery_changes_nothing(lost: Lost, by: timedelta) -> None:
    outcome = lost.run(SystemClock())
    lost.sweep(times=3, clock=Jumping(by, reading=4))
    assert lost.state(outcome) is LeaseState.REVOKING
    lost.sweep(clock=Jumping(by, reading=2), settle=LATER)
    assert lost.state(outcome) is LeaseState.REVOKED


@pytest.mark.parametrize("by", WAYS)
def test_a_process_that_has_seen_it_wait_long_enough_itself_needs_no_other_clock(lost: Lost, by: timedelta) -> None:
    outcome = lost.run(SystemClock())

    async def again() -> None:
        config = lost.bench.config(clock=Jumping(by), settle=1.5)
        async with open_services(config, redactor=Redactor()) as services, asyncio.timeout(30):
            while left := left_over(services.reader):
                await close_left_over(services, left)

    asyncio.run(again())
    assert lost.state(outcome) is LeaseState.REVOKED


@pytest.mark.parametrize("by", WAYS)
def test_vaults_own_clock_tells_a_second_process_how_long_the_first_one_has_tried(lost: Lost, by: timedelta) -> None:
    """Each sweep is a new process, which has itself seen nothing; the two clocks are two hours apart."""
    outcome = lost.run(Jumping(-by))
    tries = 0
    while lost.state(outcome) is LeaseState.REVOKING:
        lost.sweep(clock=Jumping(by), settle=2.0)
        tries += 1
        assert tries < 200
    assert tries > 1, "two seconds had not passed when it was tried first"
    assert lost.state(outcome) is LeaseState.REVOKED


class Idle(SystemClock):
    """Nothing has been asked of Vault for a minute, as soon as that is said."""

    passed = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.passed


def test_a_process_that_asks_vault_for_nothing_else_asks_for_the_time(lost: Lost) -> None:
    """Of a token whose answer was lost nobody has the accessor, so that there is no other question about it."""
    outcome = lost.run(SystemClock(), of="/auth/token/create/")
    (left,) = [lease for lease in lost.bench.history(outcome.run_id) if lease.state not in FINAL]
    assert left.grant == "(step token)"

    async def again() -> None:
        clock = Idle()
        config = lost.bench.config(clock=clock, settle=1.0 - left.ttl)
        async with open_services(config, redactor=Redactor()) as services, asyncio.timeout(30):
            clock.passed = 60.0
            while open_ones := left_over(services.reader):
                await close_left_over(services, open_ones, at_once=False)
                await asyncio.sleep(0.1)

    asyncio.run(again())
    assert lost.state(outcome, "(step token)") is LeaseState.EXPIRED


def test_a_vault_that_is_silent_is_asked_for_the_time_once_for_all_who_want_to_know(lost: Lost) -> None:
    async def go() -> None:
        vault = replace(lost.bench.provisioned.vault_config(), address=lost.proxy.address)
        clock = Idle()
        async with open_services(lost.bench.config(vault=vault, clock=clock), redactor=Redactor()) as services:
            session = services.broker.vault
            assert await session.ask_time() is not None
            clock.passed = 60.0
            asked = len(lost.proxy.requests)
            lost.proxy.refuse()
            lost.proxy.cut()
            assert await asyncio.gather(*(session.ask_time() for _ in range(20))) == [None] * 20
            lost.proxy.heal()
            assert await session.ask_time() is None, "it was asked a moment ago"
            assert len(lost.proxy.requests) == asked
            clock.passed = 120.0
            assert None not in await asyncio.gather(*(session.ask_time() for _ in range(20)))
            assert len(lost.proxy.requests) == asked + 1

    asyncio.run(go())


@pytest.mark.parametrize("hours", [1, -1])
def test_what_a_killed_process_with_a_wrong_clock_asked_for_is_not_called_gone_before_vault_is_done(
    bench: Bench, children: ForkServer, hours: int
) -> None:
    run_id = new_run_id()
    text = RUN.split("  translate:")[0]
    bench.install(load_text(text, filename="clocks.yaml", actions=catalog).workflow)

    def child(do: str, **more: Any) -> int:
        provisioned = bench.provisioned
        given = {
            "vault": bench.info.vault_address,
            "role_id": provisioned.role_id,
            "secret_id": provisioned.secret_id.reveal(),
            "ledger": bench.config().ledger_url,
            "endpoints": bench.info.endpoints,
            "issuer": bench.info.issuer_url,
            "workflow": text,
            "run": run_id,
            "do": do,
            **more,
        }
        return children.run(given)

    def states() -> set[LeaseState]:
        return {lease.state for lease in bench.history(run_id) if lease.attempt == 1 and "sweep" not in lease.resource}

    point = {"kind": LeaseRequested.kind, "grant_kind": "database", "when": "after", "count": 1}
    assert child("run", point=point, hours_ahead=hours) == -9
    assert child("recover") == 0
    assert LeaseState.REVOKING in states(), "Vault may have been asked a moment ago, whatever the records say"
    assert child("recover", later=True) == 0
    assert states() <= FINAL
    bench.assert_nothing_left()
