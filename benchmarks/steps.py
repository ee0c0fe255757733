"""What the orchestrator adds to the Vault calls that have to be made anyway.

A workflow of 100 steps, each with one database lease and an action that does nothing, beside a bare
hvac loop that makes the same calls: child token, issue, revoke the lease synchronously, revoke the
token. Both log in before the clock starts, keep their connections, use the same Vault role, and
neither connects to the database. They take turns in one run. Prints seconds and the ratio.

The loop keeps no record. The orchestrator's ledger is SQLite and waits for the disk at every commit;
PostgreSQL, which Vault works on, does so only with --durable.

With --witnesses the same workflows are run with Vault's word alone, with the database's, and with the database's and a
try of each dead password (the default): what each witness more costs.

    python benchmarks/steps.py [--steps 100] [--rounds 3] [--durable] [--witnesses]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import hvac
from installed import GRANT, Catalog, Nothing, Servers, servers

from orchestrator.assembly import open_services
from orchestrator.credentials.types import Confirm
from orchestrator.grants.policy_names import step_policy_name, token_role_name
from orchestrator.grants.scope import normalise
from orchestrator.ledger.ids import new_run_id
from orchestrator.redaction.redactor import Redactor
from orchestrator.runs.runner import Runner
from orchestrator.runs.types import RunRequest
from orchestrator.workflow.loader import LoadedWorkflow, load_text

PARALLEL = 8


def workflow(steps: int, *, sequential: bool) -> LoadedWorkflow:
    lines = ["version: 1", f"name: bench_{'sequence' if sequential else 'side_by_side'}", "agent: bench", "steps:"]
    for number in range(steps):
        lines += [f"  s{number}:", "    action: nothing", f"    grants: {{ db: {GRANT} }}"]
        if sequential and number:
            lines.append(f"    needs: [s{number - 1}]")
    return load_text("\n".join(lines), filename="bench.yaml", actions=Catalog())


async def orchestrated(stack: Servers, loaded: LoadedWorkflow, ledger: str, **changes: Any) -> float:
    """Seconds of one run, from its first record to its last."""
    config = replace(stack.config(ledger, parallel=PARALLEL), **changes)
    async with open_services(config, redactor=Redactor()) as services:
        runner = Runner(replace(services, action=lambda name: Nothing()))
        await services.broker.vault.login(deadline=time.monotonic() + 10)
        begin = time.perf_counter()
        outcome = await runner.run(RunRequest(run_id=new_run_id(), loaded=loaded, inputs={}))
        seconds = time.perf_counter() - begin
    assert outcome.exit_code == 0, outcome.reason
    return seconds


def bare(stack: Servers, loaded: LoadedWorkflow, *, workers: int) -> float:
    """Seconds of the Vault calls alone."""
    address = stack.provisioned.info.vault_address
    runtime = hvac.Client(address)
    runtime.auth.approle.login(stack.provisioned.role_id, stack.provisioned.secret_id.reveal())

    def one(step_id: str) -> None:
        step = loaded.workflow.steps[step_id]
        path = normalise("db", step.grants["db"], step_timeout=step.timeout).resource
        role = token_role_name(step_policy_name(loaded.workflow.name, step_id))
        wish = {"display_name": "bench-0123456789ab", "ttl": "90s"}
        token = runtime.adapter.post(f"/v1/auth/token/create/{role}", json=wish)["auth"]
        own = hvac.Client(address, token=token["client_token"], session=runtime.session)
        lease = own.adapter.get(f"/v1/{path}")
        runtime.adapter.put("/v1/sys/leases/revoke", json={"lease_id": lease["lease_id"], "sync": True})
        runtime.adapter.post("/v1/auth/token/revoke-accessor", json={"accessor": token["accessor"]})

    begin = time.perf_counter()
    if workers == 1:
        for step_id in loaded.workflow.steps:
            one(step_id)
    else:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(one, loaded.workflow.steps))
    return time.perf_counter() - begin


WITNESSES: dict[str, dict[str, Any]] = {
    "Vault": {"confirm": {"support": Confirm.VAULT}},
    "Vault and database": {"try_dead_logins": False},
    "Vault, database and password": {},
}
"""Who is asked that a login is gone, and how the runner is told so."""


def compare_witnesses(stack: Servers, loaded: LoadedWorkflow, rounds: int) -> None:
    """Runs that differ only in who is asked, in turns; the ratios are to the first."""
    took: dict[str, list[float]] = {name: [] for name in WITNESSES}
    asyncio.run(orchestrated(stack, loaded, f"{loaded.workflow.name}-warm"))
    for number in range(rounds):
        for place, (name, changes) in enumerate(WITNESSES.items()):
            ledger = f"{loaded.workflow.name}-{place}-{number}"
            took[name].append(asyncio.run(orchestrated(stack, loaded, ledger, **changes)))
    first = took["Vault"]
    for name, seconds in took.items():
        ratios = [mine / other for mine, other in zip(seconds, first, strict=True)]
        print(
            f"{loaded.workflow.name}, {len(loaded.workflow.steps)} steps, asked: {name}: "
            f"{statistics.median(seconds):.2f} s, ratio {statistics.median(ratios):.2f} "
            f"(min {min(ratios):.2f}, max {max(ratios):.2f}); best rounds {min(seconds) / min(first):.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--durable", action="store_true", help="let PostgreSQL wait for the disk, as in production")
    parser.add_argument("--witnesses", action="store_true", help="compare who is asked that a login is gone")
    given = parser.parse_args()
    loads = {sequential: workflow(given.steps, sequential=sequential) for sequential in (True, False)}
    with servers(durable=given.durable) as stack:
        stack.install([loaded.workflow for loaded in loads.values()])
        for sequential, loaded in loads.items():
            if given.witnesses:
                compare_witnesses(stack, loaded, given.rounds)
                continue
            workers = 1 if sequential else PARALLEL
            bare(stack, loaded, workers=workers)
            ours, theirs = [], []
            for number in range(given.rounds):
                theirs.append(bare(stack, loaded, workers=workers))
                ours.append(asyncio.run(orchestrated(stack, loaded, f"{loaded.workflow.name}-{number}")))
            ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
            print(
                f"{given.steps} steps {'one after another' if sequential else f'side by side ({PARALLEL})'}: "
                f"orchestrator {statistics.median(ours):.2f} s, bare hvac {statistics.median(theirs):.2f} s, "
                f"ratio {statistics.median(ratios):.2f} (min {min(ratios):.2f}, max {max(ratios):.2f}); "
                f"of the best rounds {min(ours):.2f} s, {min(theirs):.2f} s, ratio {min(ours) / min(theirs):.2f}"
            )


if __name__ == "__main__":
    main()
