"""The runner is killed with SIGKILL before and after the commit of every transition of the lease life.

The points are computed from the state machine; each names the scenario in which its transition happens.
Afterwards another process recovers, and the database, Vault and the ledger must agree that nothing is left.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from bench import SETUPS, Bench, Setup
from fork_server import ForkServer
from proxy import Answer, DropAnswer, Proxy
from queued import put, shared

from orchestrator.actions.catalog import catalog
from orchestrator.clock import SystemClock
from orchestrator.ledger.ids import new_run_id
from orchestrator.ledger.lease import FINAL, TRANSITIONS, LeaseState
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.states import RunState
from orchestrator.ledger.types import LeaseFilter, RunRecord, StepRecord
from orchestrator.workflow.loader import load_text

S = LeaseState

FLOW = """
version: 1
name: crash_flow
agent: tester
steps:
  first:
    action: exec
    with: { command: [/bin/sh, -c, "echo first >> __MARKS__"], paths: { write: [__FOLDER__] } }
  work:
    needs: [first]
    action: __ACTION__
    grants:
      __GRANTS__
    with: __WITH__
    timeout: 8s
  last:
    needs: [work]
    action: exec
    with: { command: [/bin/sh, -c, "echo last >> __MARKS__"], paths: { write: [__FOLDER__] } }
"""
DB = """db:
        kind: database
        connection: support
        ttl: __TTL__
        privileges:
          - { select: customer_feedback, columns: [id, kind], where: { kind: complaint } }"""
BOUND = DB.replace("kind: complaint", 'kind: "${{ run.id }}"')
QUERY = "{ sql: 'SELECT id FROM customer_feedback LIMIT 1', grant: db }"
SLOW = "{ sql: 'SELECT pg_sleep(3)', grant: db }"
TOKEN = "api: { kind: token, audience: translation-api, scope: [translate] }"
MISSING = DB + "\n      gone: { kind: secret, path: nowhere/at-all, keys: [token] }"
MISSING_FIRST = "gone: { kind: secret, path: nowhere/at-all, keys: [token] }\n      " + DB


@dataclass(frozen=True)
class Scenario:
    """A workflow in which a transition happens, and the faults that it takes."""

    kind: str
    """The event of the transition."""
    grant_kind: str = "database"
    grants: str = DB
    with_: str = QUERY
    action: str = "postgres.query"
    ttl: str = "30s"
    fault: str = ""
    """`lost`: the answer to the issuance is dropped. `stuck`: revocation fails for a while."""
    in_recovery: bool = False
    """It is the recovery that is killed; the run before it was killed while its lease was issued."""
    count: int = 1
    beside: bool = False
    """The step that follows may be under way: what a step has done and nobody could record is done again."""


SCENARIOS: dict[tuple[LeaseState | None, LeaseState], tuple[Scenario, ...]] = {
    (None, S.REQUESTED): (
        Scenario("lease.requested"),
        Scenario("lease.requested", "token", TOKEN, "{ method: GET, url: __URL__ }", "http.request"),
        Scenario("lease.requested", "step-token", BOUND, count=2),
    ),
    (S.REQUESTED, S.DENIED): (Scenario("lease.denied", "secret", MISSING),),
    (S.REQUESTED, S.FAILED): (Scenario("lease.failed", "database", MISSING_FIRST),),
    (S.REQUESTED, S.ISSUED): (
        Scenario("lease.issued"),
        Scenario("lease.issued", "step-token"),
        Scenario("lease.issued", "token", TOKEN, "{ method: GET, url: __URL__ }", "http.request"),
        Scenario("lease.issued", "database", BOUND, count=2),
    ),
    (S.REQUESTED, S.REVOKING): (Scenario("lease.revoking", fault="lost"),),
    (S.ISSUED, S.ISSUED): (Scenario("lease.renewed", ttl="2s", with_=SLOW),),
    (S.ISSUED, S.REVOKING): (Scenario("lease.revoking"), Scenario("lease.revoking", in_recovery=True)),
    (S.REVOKING, S.REVOKING): (
        Scenario("lease.revocation_failed", fault="stuck"),
        Scenario("lease.vault_revoked"),
        Scenario("lease.vault_revoked", in_recovery=True),
        Scenario("lease.login_tried", beside=True),
    ),
    (S.REVOKING, S.REVOKED): (
        Scenario("lease.revoked"),
        Scenario("lease.revoked", in_recovery=True),
        Scenario("lease.revoked", "step-token", beside=True),
        Scenario("lease.revoked", "step-token", in_recovery=True),
    ),
    (S.REVOKING, S.EXPIRED): (Scenario("lease.expired", "step-token", in_recovery=True, fault="no accessor"),),
    (S.REVOKING, S.ENDED): (Scenario("lease.ended", "token", TOKEN, "{ method: GET, url: __URL__ }", "http.request"),),
}

LEGAL = {(None, S.REQUESTED)} | {(before, after) for before, following in TRANSITIONS.items() for after in following}

POINTS = [
    pytest.param(
        setup,
        scenario,
        when,
        id=f"{setup}-{before or 'nothing'}-{after}-{scenario.grant_kind}{scenario.count if scenario.count > 1 else ''}"
        f"{'-in-recovery' if scenario.in_recovery else ''}-{when}",
    )
    for setup in (*SETUPS, "queue")
    for (before, after), scenarios in SCENARIOS.items()
    # On PostgreSQL, and through the queue, every transition once: what the others vary, neither of them sees.
    for scenario in (scenarios if setup == "sqlite" else scenarios[:1])
    for when in ("before", "after")
]


def test_every_transition_of_the_state_machine_has_its_crash_points() -> None:
    assert set(SCENARIOS) == LEGAL


@dataclass
class Victim:
    """One run that is to be killed, and what can be asked about it afterwards."""

    bench: Bench
    proxy: Proxy
    run_id: str
    marks: Path
    setup: Setup
    children: ForkServer

    def text(self, scenario: Scenario) -> str:
        text = FLOW
        for name, value in (
            ("GRANTS", scenario.grants),
            ("WITH", scenario.with_),
            ("ACTION", scenario.action),
            ("TTL", scenario.ttl),
            ("MARKS", str(self.marks)),
            ("FOLDER", str(self.marks.parent)),
            ("URL", f"{self.bench.info.translation_url}/nothing"),
        ):
            text = text.replace(f"__{name}__", value)
        return text

    def child(self, do: str, *, point: dict[str, Any] | None = None, text: str = "", **more: Any) -> int:
        """Run the child and return how it ended; -9 is the kill that was asked for."""
        provisioned = self.bench.provisioned
        given = {
            "vault": self.proxy.address,
            "role_id": provisioned.role_id,
            "secret_id": provisioned.secret_id.reveal(),
            "ledger": self.setup.ledger_url,
            "endpoints": self.bench.info.endpoints,
            "issuer": self.bench.info.issuer_url,
            "workflow": text,
            "run": self.run_id,
            "do": do,
            "point": point,
            **more,
        }
        return self.children.run(given)

    @property
    def queued(self) -> bool:
        """Whether the run comes through the shared queue, and those that drive it are its workers."""
        return self.setup.queue

    def put(self, text: str) -> None:
        with shared(self.setup.ledger_url) as queue:
            put(queue, load_text(text, filename="crash.yaml", actions=catalog), run_id=self.run_id)

    def run(self, text: str, **how: Any) -> int:
        if self.queued:
            self.put(text)
        return self.child("work" if self.queued else "run", text=text, **how)

    def recover(self, **how: Any) -> int:
        return self.child("work" if self.queued else "recover", **how)

    def record(self) -> tuple[RunRecord, list[StepRecord], set[LeaseState]]:
        with open_ledger(self.setup.ledger_url, clock=SystemClock()) as ledger:
            assert ledger.verify(self.run_id) is None
            record = ledger.run(self.run_id)
            assert record is not None
            leases = ledger.leases(LeaseFilter(run=self.run_id))
            return record, list(ledger.steps(self.run_id)), {lease.state for lease in leases}


@pytest.fixture
def victim(bench: Bench, setup: Setup, tmp_path: Path, children: ForkServer) -> Iterator[Victim]:
    host = bench.info.vault_address.removeprefix("http://")
    address, _, port = host.partition(":")
    with Proxy((address, int(port)), http=True) as proxy:
        yield Victim(bench, proxy, new_run_id(), tmp_path / "marks", setup, children)


def kill(victim: Victim, scenario: Scenario, when: str) -> None:
    """Let the process die at the point, in the run or in the recovery after it."""
    text = victim.text(scenario)
    victim.bench.install(load_text(text, filename="crash.yaml", actions=catalog).workflow)
    point = {"kind": scenario.kind, "grant_kind": scenario.grant_kind, "when": when, "count": scenario.count}
    if scenario.fault == "lost":
        victim.proxy.fail(DropAnswer(), when=lambda line: "/database/creds/orc-" in line)
    if scenario.fault == "stuck":
        victim.proxy.fail(Answer(500), times=1000, when=lambda line: "/sys/leases/revoke" in line)
    if scenario.in_recovery:
        first = {"kind": "lease.issued", "grant_kind": scenario.grant_kind, "when": "after", "count": 1}
        if scenario.fault == "no accessor":
            first["when"] = "before"
        assert victim.run(text, point=first) == -9
        if scenario.fault == "no accessor":  # nothing tells that the token above it is gone
            # Refused and not unreachable, which would be waited for.
            victim.proxy.fail(Answer(400), times=1000, when=lambda line: "/revoke-accessor" in line)
        assert victim.recover(point=point, later=scenario.kind == "lease.expired") == -9
    else:
        grace = {"grace": 1.0} if scenario.fault == "stuck" else {}
        assert victim.run(text, point=point, **grace) == -9
    victim.proxy.heal()


@pytest.mark.parametrize(("setup", "scenario", "when"), POINTS, indirect=["setup"])
def test_nothing_is_left_after_a_crash(victim: Victim, scenario: Scenario, when: str) -> None:
    kill(victim, scenario, when)
    recorded = {step.step for step in victim.record()[1] if step.finished_at is not None}
    assert victim.recover() == 0
    if not victim.record()[2] <= FINAL:
        victim.recover(later=True)  # an answer that was lost is only final when Vault has ended the request
    assert victim.bench.logins() == []
    assert victim.bench.sessions() == []
    record, steps, leases = victim.record()
    assert leases <= FINAL
    assert record.state in (RunState.SUCCEEDED, RunState.FAILED, RunState.REFUSED)
    assert {step.step for step in steps} == {"first", "work", "last"}
    assert all(step.finished_at is not None for step in steps)
    marks = victim.marks.read_text().split()
    assert marks.count("first") == (1 if "first" in recorded else 2), "a step whose end is on record is not run again"
    assert marks.count("last") <= (2 if scenario.beside else 1)
    if record.state is RunState.SUCCEEDED:
        assert list(dict.fromkeys(marks)) == ["first", "last"]
