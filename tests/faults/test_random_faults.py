"""Hundreds of random faults, one after another and together, and the invariants after each round.

    ORCHESTRATOR_TEST_FAULTS=5000 ORCHESTRATOR_TEST_SEED=7 pytest tests/faults/test_random_faults.py

The seed is printed, and gives the same faults in the same order again. Mixed are: answers of Vault that are
refused, dropped, garbled or cut; connections between Vault and PostgreSQL that are cut in the middle of a statement
or before its answer; SIGKILL of the runner at a random point of the lease life; SIGKILL of OpenBao (persistent
storage, sealed start) and of PostgreSQL in the middle of a run.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

import pytest
from bench import Bench
from fork_server import ForkServer
from proxy import Answer, CutAfterForwarding, DropAnswer, Fault, Garbage, GarbledAnswer, Proxy

from orchestrator.actions.catalog import catalog
from orchestrator.assembly import open_services
from orchestrator.clock import SystemClock
from orchestrator.devstack.stack import DevStack
from orchestrator.ledger.ids import new_run_id
from orchestrator.ledger.lease import FINAL
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.states import RunState
from orchestrator.ledger.types import LeaseFilter
from orchestrator.recovery.open_leases import close_left_over, left_over
from orchestrator.recovery.takeover import Recovery
from orchestrator.redaction.redactor import Redactor
from orchestrator.runs.runner import Runner
from orchestrator.workflow.loader import load_text

FAULTS = int(os.environ.get("ORCHESTRATOR_TEST_FAULTS", "200"))
SEED = int(os.environ.get("ORCHESTRATOR_TEST_SEED", str(random.SystemRandom().randrange(10**6))))

VAULTS_PAUSES = 60.0 + 10 + 20 + 40 + 80 + 160
"""Seconds until Vault has tried a revocation for the last time: it doubles its pauses of 10 s five times."""

READ = "{ kind: database, connection: support, role: feedback-read }"
TOKEN = "{ kind: token, audience: translation-api, scope: [translate] }"
SECRET = "{ kind: secret, path: slack/support-bot, keys: [token] }"
LIMITED = (
    "{ kind: database, connection: support, privileges: [{ select: customer_feedback, columns: [id],"
    ' where: { kind: "${{ run.id }}" } }] }'
)


def workflow(name: str, steps: dict[str, list[str]]) -> str:
    lines = ["version: 1", f"name: {name}", "agent: tester", "steps:"]
    for step, grants in steps.items():
        named = ", ".join(f"g{number}: {grant}" for number, grant in enumerate(grants))
        lines += [
            f"  {step}:",
            "    action: postgres.query",
            f"    grants: {{ {named} }}",
            "    with: { sql: SELECT 1 AS one, grant: g0 }",
            "    timeout: 4s",
        ]
    return "\n".join(lines)


WORKFLOWS = [
    workflow("random_single", {"one": [READ]}),
    workflow("random_mixed", {"one": [READ, TOKEN, SECRET]}),
    workflow("random_side_by_side", {"one": [READ], "two": [READ, TOKEN], "three": [READ]}),
    workflow("random_limited", {"one": [LIMITED], "two": [READ]}),
]
REQUESTS = (
    "/auth/token/create/",
    "/database/creds/",
    "/sys/leases/revoke",
    "/revoke-accessor",
    "/approle/login",
    "/v1/",
)
KINDS = ("requested", "issued", "revoking", "revoked", "ended", "failed", "denied")


LATER = -600.0
"""As `settle`: ten minutes have passed, and whatever was asked of Vault before is over."""


@dataclass
class Arena:
    """A stack of its own behind proxies, and the chance that decides what goes wrong."""

    bench: Bench
    servers: DevStack
    vault: Proxy
    database: Proxy
    chance: random.Random
    keeper: ThreadPoolExecutor
    """Starts servers again from a thread that stays: they die with the thread that started them."""
    children: ForkServer
    done: Counter[str] = field(default_factory=Counter)

    @property
    def config(self) -> dict[str, Any]:
        vault = replace(self.bench.provisioned.vault_config(), address=self.vault.address)
        return {"vault": vault, "grace": 2.0, "settle": 1.0}

    def plant(self) -> int:
        """Ask for one to four faults of the network; how many."""
        wanted = self.chance.randint(1, 4)
        for _ in range(wanted):
            if self.chance.random() < 0.75:
                part = self.chance.choice(REQUESTS)
                self.vault.fail(self._fault(), when=lambda line, part=part: part in line)
            else:
                data = self.chance.choice([b'CREATE ROLE "orc_', b"orchestrator.revoke", b"commit\x00", b"GRANT "])
                self.database.cut_at(data, forwarded=self.chance.random() < 0.5)
        return wanted

    def _fault(self) -> Fault:
        kinds: list[Fault] = [
            Answer(self.chance.choice([429, 500, 502, 503])),
            Answer(429, headers={"Retry-After": "1"}),
            Garbage(),
            GarbledAnswer(self.chance.choice([b"", b"{}", b"[]", b'{"data": null}', b"<html>"])),
            DropAnswer(),
            CutAfterForwarding(),
        ]
        return self.chance.choice(kinds)

    def happened(self, planted: int) -> int:
        count = planted - self.vault.unused - self.database.unused
        self.done["network"] += count
        self.vault.heal()
        self.database.heal()
        return count

    def run_here(self, text: str, run_id: str) -> None:
        self.bench.run(text, install=False, run_id=run_id, **self.config)

    def run_and_be_killed(self, text: str, run_id: str) -> bool:
        """In a process of its own, which is killed at a random point of the lease life."""
        point = {
            "kind": f"lease.{self.chance.choice(KINDS)}",
            "grant_kind": "",
            "when": self.chance.choice(["before", "after"]),
            "count": self.chance.randint(1, 4),
        }
        provisioned = self.bench.provisioned
        given = {
            "vault": self.vault.address,
            "role_id": provisioned.role_id,
            "secret_id": provisioned.secret_id.reveal(),
            "ledger": self.bench.config().ledger_url,
            "endpoints": self.bench.info.endpoints,
            "issuer": self.bench.info.issuer_url,
            "workflow": text,
            "run": run_id,
            "do": "run",
            "point": point,
            "grace": 2.0,
        }
        return self.children.run(given, seconds=120) == -9

    @contextmanager
    def server_dies(self) -> Iterator[None]:
        """Kill a server in the middle of what happens inside, and start it again."""
        server: Any = self.chance.choice([self.servers.openbao, self.servers.postgres])

        over, moment = threading.Event(), self.chance.uniform(0.0, 0.4)

        def die() -> None:
            over.wait(moment)
            server.kill()
            server.start()

        dying = self.keeper.submit(die)
        try:
            yield
        finally:
            over.set()
            dying.result()
        self.done[f"{type(server).__name__} killed"] += 1

    def recover(self) -> None:
        """What a later process does: close what is left, and go on with what was cut short."""

        async def go() -> None:
            config = self.bench.config(**{**self.config, "settle": LATER})
            async with open_services(config, redactor=Redactor()) as services:
                for found in await Recovery(services, goes_on=lambda record: True).until_decided():
                    if found.resumable is not None:
                        await Runner(services).resume(found.resumable)
                await close_left_over(services, left_over(services.reader))

        asyncio.run(go())

    def told(self, path: str) -> object:
        """What Vault and the ledger say of a lease that Vault still has."""
        lease_id = path.removeprefix("sys/leases/lookup/")
        with open_ledger(self.bench.config().ledger_url, clock=SystemClock()) as ledger:
            known = ledger.leases(LeaseFilter(vault_lease_id=lease_id))
        return lease_id, self.bench.vault.write("sys/leases/lookup", lease_id=lease_id)["data"], known

    def check(self, run_id: str) -> None:
        """The invariants: nothing in the database, no lease that is not over, no run that has not ended."""
        assert self.bench.logins() == []
        assert self.bench.sessions() == []
        assert self.bench.sql("SELECT count(*) FROM orchestrator.binding") == [0]
        with open_ledger(self.bench.config().ledger_url, clock=SystemClock()) as ledger:
            record = ledger.run(run_id)
            if record is None:
                return
            assert ledger.verify(run_id) is None
            assert record.state is not RunState.RUNNING
            assert {lease.state for lease in ledger.leases(LeaseFilter(run=run_id))} <= FINAL


@pytest.fixture
def arena(own_bench: tuple[DevStack, Bench], children: ForkServer) -> Iterator[Arena]:
    servers, bench = own_bench
    at = urlsplit(bench.info.vault_address)
    assert at.hostname
    assert at.port
    postgres = (bench.info.postgres_host, bench.info.postgres_port)
    for text in WORKFLOWS:
        bench.install(load_text(text, filename="random.yaml", actions=catalog).workflow)
    with (
        Proxy((at.hostname, at.port), http=True) as vault,
        Proxy(postgres) as database,
        ThreadPoolExecutor(1) as keeper,
    ):
        details = bench.vault.read("database/config/support")["data"]["connection_details"]
        through = details["connection_url"].replace(f":{postgres[1]}/", f":{database.port}/")
        bench.vault.write("database/config/support", connection_url=through)
        yield Arena(bench, servers, vault, database, random.Random(SEED), keeper, children)
        servers.openbao.stop()
        servers.postgres.stop()


@pytest.mark.parametrize("own_bench", ["persistent"], indirect=True)
def test_whatever_fails_nothing_is_left(arena: Arena) -> None:
    print(f"ORCHESTRATOR_TEST_SEED={SEED} ORCHESTRATOR_TEST_FAULTS={FAULTS}")
    rounds = 0
    while arena.done.total() < FAULTS:
        rounds += 1
        text, run_id = arena.chance.choice(WORKFLOWS), new_run_id()
        what = arena.chance.random()
        planted = arena.plant()
        if what < 0.12:
            arena.done["runner killed"] += arena.run_and_be_killed(text, run_id)
        elif what < 0.16:
            with arena.server_dies():
                arena.run_here(text, run_id)
        else:
            arena.run_here(text, run_id)
        arena.happened(planted)
        arena.servers.openbao.wait_active()
        arena.recover()
        arena.check(run_id)
    until = time.monotonic() + VAULTS_PAUSES
    while (left := arena.bench.vault_leases()) and time.monotonic() < until:
        time.sleep(0.2)  # Vault works off what hangs from revoked tokens by itself, with pauses after a failure
    assert [arena.told(lease) for lease in left] == []
    print(f"{arena.done.total()} faults in {rounds} rounds: {dict(arena.done)}")
