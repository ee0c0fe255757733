"""How long it takes until nothing is left of a runner that was killed, against the number of leases it held.

    python benchmarks/recovery.py [--leases 1 100 1000]

A process runs a workflow of N steps side by side, each with one database login, and is killed with SIGKILL
while it holds them all. A fresh process recovers. Two figures, in seconds: from its start until `pg_roles`
holds no ephemeral login, and until every lease is closed in the ledger. Fails where a lease is not confirmed.
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
from orchestrator.ledger.types import LeaseFilter
from orchestrator.policy.allow_all import AllowAllEngine
from orchestrator.recovery.takeover import Recovery
from orchestrator.redaction import Redactor
from orchestrator.runs.runner import Runner
from orchestrator.runs.types import RunRequest
from orchestrator.secret import Secret
from orchestrator.vault.config import AppRoleAuth, VaultConfig
from orchestrator.workflow.loader import load_text


class Holding(Exec):
    """In the place of `exec`: holds the step's credentials until the process is killed."""

    async def run(self, params: Any, context: StepContext) -> JsonObject:
        await asyncio.Event().wait()
        return {}


@dataclass(frozen=True, slots=True)
class Recovered:
    """Seconds from the start of the process that recovers."""

    logins_gone: float
    leases_closed: float


def workflow(leases: int) -> str:
    lines = ["version: 1", f"name: bench_recovery_{leases}", "agent: bench", "steps:"]
    for number in range(leases):
        lines += [f"  s{number}:", "    action: exec", f"    grants: {{ db: {GRANT} }}", "    timeout: 10m"]
        lines += ["    with: { command: [/bin/true] }"]
    return "\n".join(lines)


async def child(given: dict[str, Any]) -> None:
    """What the two processes do: hold the leases of a run, or recover from the death of the one that did."""
    config = RunnerConfig(
        vault=VaultConfig(given["vault"], AppRoleAuth(given["role_id"], Secret(given["secret_id"]))),
        ledger_url=given["ledger"],
        policy=AllowAllEngine(),
        endpoints=given["endpoints"],
        max_parallel=100_000,
    )
    async with open_services(config, redactor=Redactor()) as services:
        if given["do"] == "hold":
            loaded = load_text(given["workflow"], filename="bench.yaml", actions=catalog)
            request = RunRequest(run_id=new_run_id(), loaded=loaded, inputs={})
            await Runner(replace(services, action=lambda name: Holding())).run(request)
        else:
            (found,) = await Recovery(services).patiently()
            assert found.confirmed, "not every lease is confirmed gone"


def start(stack: Servers, text: str, ledger: str, do: str) -> subprocess.Popen[str]:
    provisioned = stack.provisioned
    given = {
        "do": do,
        "workflow": text,
        "vault": provisioned.info.vault_address,
        "role_id": provisioned.role_id,
        "secret_id": provisioned.secret_id.reveal(),
        "ledger": ledger,
        "endpoints": provisioned.endpoints,
    }
    process = subprocess.Popen([sys.executable, __file__, "--child"], stdin=subprocess.PIPE, text=True)
    assert process.stdin is not None
    process.stdin.write(json.dumps(given))
    process.stdin.close()
    return process


def measure(stack: Servers, leases: int) -> Recovered:
    text, ledger_url = workflow(leases), f"sqlite:///{stack.folder / f'{leases}.db'}"
    stack.install([load_text(text, filename="bench.yaml", actions=catalog).workflow])
    with (
        psycopg.connect(stack.provisioned.info.support_dsn.reveal(), autocommit=True) as session,
        open_ledger(ledger_url, clock=SystemClock()) as ledger,
    ):

        def logins() -> int:
            row = session.execute("SELECT count(*) FROM pg_roles WHERE rolname LIKE 'orc\\_%'").fetchone()
            assert row is not None
            return int(row[0])

        def wait(process: subprocess.Popen[str], condition: Callable[[], bool]) -> float:
            while not condition():
                assert process.poll() in (None, 0), "the process ended too early"
                time.sleep(0.02)
            return time.perf_counter()

        # A login whose issuance is not on record yet is of unknown outcome, which is confirmed only much later.
        issued = LeaseFilter(grant_kind="database", states=frozenset({LeaseState.ISSUED}), limit=leases)
        holder = start(stack, text, ledger_url, "hold")
        wait(holder, lambda: logins() == leases and len(ledger.leases(issued)) == leases)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        begin = time.perf_counter()
        recoverer = start(stack, text, ledger_url, "recover")
        logins_gone = wait(recoverer, lambda: logins() == 0)
        leases_closed = wait(recoverer, lambda: not ledger.leases(LeaseFilter(states=OPEN, limit=1)))
        assert recoverer.wait() == 0
    return Recovered(logins_gone - begin, leases_closed - begin)


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
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        asyncio.run(child(json.load(sys.stdin)))
        return
    with servers() as stack:
        report([(leases, measure(stack, leases)) for leases in given.leases])


if __name__ == "__main__":
    main()
