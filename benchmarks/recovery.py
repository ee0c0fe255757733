"""How long it takes until nothing is left of a runner that was killed, beside a bare loop of the same revocations.

    python benchmarks/recovery.py [--leases 1 100 1000] [--runs 8] [--at-most 1.2]

A process carries out several runs of a workflow at once, each step with one database login, and is killed with
SIGKILL while it holds N of them. A fresh process recovers. Two figures, in seconds: from its start until
`pg_roles` holds no ephemeral login, and until every lease is closed in the ledger.

For the largest N the recovery proper is then compared with a loop that keeps no record: the same Vault session
revokes as many leases and step tokens of another killed process by their ids, as many at once as it has
connections. The loop runs before and after; both are measured inside their process, once it has logged in.
Exits with 1 where a lease is not confirmed gone, or where recovery takes more than `--at-most` times the loop.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import gcd
from typing import Any

import psycopg
from installed import GRANT, Servers, servers

from orchestrator.actions.base import StepContext
from orchestrator.actions.catalog import catalog
from orchestrator.actions.process.exec import Exec
from orchestrator.assembly import RunnerConfig, open_services
from orchestrator.clock import SystemClock
from orchestrator.jsontypes import JsonObject
from orchestrator.ledger.ids import new_run_id
from orchestrator.ledger.lease import OPEN, LeaseState
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.types import LeaseFilter, LeaseRecord
from orchestrator.policy.engines.allow_all import AllowAllEngine
from orchestrator.recovery.takeover import Recovery
from orchestrator.redaction.redactor import Redactor
from orchestrator.runs.runner import Runner
from orchestrator.runs.types import RunRequest
from orchestrator.secret import Secret
from orchestrator.vault.config import AppRoleAuth, TokenAuth, VaultConfig
from orchestrator.vault.session import VaultSession
from orchestrator.workflow.loader import load_text

CONNECTIONS = VaultConfig("", TokenAuth(Secret(""))).connections
"""How many requests the session has under way at once."""


class Holding(Exec):
    """In the place of `exec`: holds the step's credentials until the process is killed."""

    async def run(self, params: Any, context: StepContext) -> JsonObject:
        await asyncio.Event().wait()
        return {}


@dataclass(frozen=True, slots=True)
class Recovered:
    """Seconds from the start of the process that recovers; `work` is what it needed itself once it had logged in."""

    logins_gone: float
    leases_closed: float
    work: float


def workflow(leases: int) -> str:
    lines = ["version: 1", f"name: bench_recovery_{leases}", "agent: bench", "steps:"]
    for number in range(leases):
        lines += [f"  s{number}:", "    action: exec", f"    grants: {{ db: {GRANT} }}", "    timeout: 10m"]
        lines += ["    with: { command: [/bin/true] }"]
    return "\n".join(lines)


async def child(given: dict[str, Any]) -> None:
    """What the processes do: hold the leases of runs, recover from the death of the one that did, or only revoke."""
    config = RunnerConfig(
        vault=VaultConfig(given["vault"], AppRoleAuth(given["role_id"], Secret(given["secret_id"]))),
        ledger_url=given["ledger"],
        policy=AllowAllEngine(),
        endpoints=given["endpoints"],
        max_parallel=100_000,
    )
    async with open_services(config, redactor=Redactor()) as services:
        await services.broker.vault.login(deadline=services.clock.monotonic() + 10)
        begin = time.perf_counter()
        if given["do"] == "hold":
            loaded = load_text(given["workflow"], filename="bench.yaml", actions=catalog)
            runner = Runner(replace(services, action=lambda name: Holding()))
            requests = [RunRequest(run_id=new_run_id(), loaded=loaded, inputs={}) for _ in range(given["runs"])]
            await asyncio.gather(*map(runner.run, requests))
        elif given["do"] == "recover":
            found = await Recovery(services).once()
            assert len(found) == given["runs"], "not every run was found"
            assert all(each.confirmed for each in found), "not every lease is confirmed gone"
        else:
            await revoke_all(services.broker.vault, services.reader.leases(LeaseFilter(limit=100_000)))
        print(time.perf_counter() - begin)


async def revoke_all(vault: VaultSession, leases: Sequence[LeaseRecord]) -> None:
    """Revoke by id, as many at once as the session has connections: first a step's lease, then its token."""
    room = asyncio.Semaphore(CONNECTIONS)
    steps: dict[str, list[LeaseRecord]] = {}
    for lease in leases:
        steps.setdefault(lease.step_key, []).append(lease)

    async def revoke(own: Sequence[LeaseRecord]) -> None:
        async with room:
            deadline = time.monotonic() + 60
            for lease in sorted(own, key=lambda each: not each.vault_lease_id):
                if lease.vault_lease_id:
                    await vault.revoke_lease(lease.vault_lease_id, deadline=deadline)
                else:
                    await vault.revoke_accessor(lease.accessor, deadline=deadline)

    await asyncio.gather(*map(revoke, steps.values()))


def start(stack: Servers, text: str, ledger: str, do: str, runs: int) -> subprocess.Popen[str]:
    provisioned = stack.provisioned
    given = {
        "do": do,
        "runs": runs,
        "workflow": text,
        "vault": provisioned.info.vault_address,
        "role_id": provisioned.role_id,
        "secret_id": provisioned.secret_id.reveal(),
        "ledger": ledger,
        "endpoints": provisioned.endpoints,
    }
    process = subprocess.Popen(
        [sys.executable, __file__, "--child"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(given))
    process.stdin.close()
    process.stdin = None
    return process


@dataclass(frozen=True)
class Scene:
    """Servers on which `leases` leases in `runs` runs of equal size are held by a process that is then killed."""

    stack: Servers
    leases: int
    runs: int

    def killed(self, name: str) -> str:
        """Hold the leases, kill the process that holds them, and return the URL of its ledger."""
        url = f"sqlite:///{self.stack.folder / f'{name}-{self.leases}.db'}"
        self.stack.install([load_text(self.text, filename="bench.yaml", actions=catalog).workflow])
        # A login whose issuance is not on record yet is of unknown outcome, which is confirmed only much later.
        issued = LeaseFilter(grant_kind="database", states=frozenset({LeaseState.ISSUED}), limit=self.leases)
        holder = start(self.stack, self.text, url, "hold", self.runs)
        with open_ledger(url, clock=SystemClock()) as ledger:
            wait(holder, lambda: self.logins() == self.leases and len(ledger.leases(issued)) == self.leases)
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
        return url

    @property
    def text(self) -> str:
        return workflow(self.leases // self.runs)

    def logins(self) -> int:
        with psycopg.connect(self.stack.provisioned.info.support_dsn.reveal(), autocommit=True) as session:
            row = session.execute("SELECT count(*) FROM pg_roles WHERE rolname LIKE 'orc\\_%'").fetchone()
        assert row is not None
        return int(row[0])

    def recover(self) -> Recovered:
        url = self.killed("recovered")
        begin = time.perf_counter()
        recoverer = start(self.stack, self.text, url, "recover", self.runs)
        with open_ledger(url, clock=SystemClock()) as ledger:
            logins_gone = wait(recoverer, lambda: self.logins() == 0)
            leases_closed = wait(recoverer, lambda: not ledger.leases(LeaseFilter(states=OPEN, limit=1)))
        return Recovered(logins_gone - begin, leases_closed - begin, told(recoverer))

    def bare(self, name: str) -> float:
        """Seconds of the loop."""
        took = told(start(self.stack, self.text, self.killed(name), "revoke", self.runs))
        assert self.logins() == 0
        return took


def wait(process: subprocess.Popen[str], condition: Callable[[], bool]) -> float:
    """When the condition came true."""
    while not condition():
        assert process.poll() in (None, 0), "the process ended too early"
        time.sleep(0.1)
    return time.perf_counter()


def told(process: subprocess.Popen[str]) -> float:
    """The seconds that a process says it needed."""
    said, _ = process.communicate()
    assert process.returncode == 0, "it failed"
    return float(said)


def report(figures: Sequence[tuple[int, Recovered]]) -> None:
    base = figures[0][1]
    for leases, took in figures:
        line = f"{leases:5} leases: no login left after {took.logins_gone:6.2f} s, all closed after "
        line += f"{took.leases_closed:6.2f} s"
        if leases > figures[0][0]:
            each = (took.leases_closed - base.leases_closed) / (leases - figures[0][0])
            line += f", {each * 1000:.1f} ms for each lease more"
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--leases", type=int, nargs="+", default=[1, 100, 1000])
    parser.add_argument("--runs", type=int, default=8, help="runs that hold them, or a divisor of it")
    parser.add_argument("--at-most", type=float, default=1.2, help="times of the bare loop")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        asyncio.run(child(json.load(sys.stdin)))
        return
    with servers() as stack:
        scenes = [Scene(stack, leases, gcd(leases, given.runs)) for leases in sorted(given.leases)]
        before = scenes[-1].bare("before")
        figures = [(scene.leases, scene.recover()) for scene in scenes]
        loop = (before + scenes[-1].bare("after")) / 2
    report(figures)
    leases, largest = figures[-1]
    ratio = largest.work / loop
    print(f"{leases:5} leases in {scenes[-1].runs} runs: {largest.work:.2f} s, the bare loop {loop:.2f} s: {ratio:.2f}")
    sys.exit(ratio > given.at_most)


if __name__ == "__main__":
    main()
