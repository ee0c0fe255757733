"""What the orchestrator adds to the Vault calls that have to be made anyway.

A workflow of 100 steps, each with one database lease and an action that does nothing, beside a bare
hvac loop that makes the same calls: child token, issue, revoke the lease synchronously, revoke the
token. Both in one run, taking turns, against the embedded servers. Prints seconds and the ratio.

    python benchmarks/steps.py [--steps 100] [--rounds 3]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hvac

from orchestrator.actions.base import Params, StepContext
from orchestrator.devstack.provisioned import Provisioned, provision_stack
from orchestrator.devstack.stack import DevStack
from orchestrator.grants.scope import normalise
from orchestrator.jsontypes import JsonObject
from orchestrator.ledger.ids import new_run_id
from orchestrator.policy.allow_all import AllowAllEngine
from orchestrator.provision.step_policies import step_policy
from orchestrator.redaction import Redactor
from orchestrator.runtime.runner import Runner
from orchestrator.runtime.service import RunnerConfig, open_services
from orchestrator.runtime.types import RunRequest
from orchestrator.workflow.loader import LoadedWorkflow, load_text

ROOT = Path(__file__).parents[1]
GRANT = "{ kind: database, connection: support, role: feedback-read }"
PARALLEL = 8


class Nothing:
    """An action that does nothing, so that only the orchestrator is measured."""

    summary = "does nothing"
    params = Params

    def view(self, params: Any) -> JsonObject:
        return {}

    async def run(self, params: Any, context: StepContext) -> JsonObject:
        return {}


class Catalog:
    def names(self) -> list[str]:
        return ["nothing"]

    def params_of(self, name: str) -> type[Params] | None:
        return Params if name == "nothing" else None


def workflow(steps: int, *, sequential: bool) -> LoadedWorkflow:
    lines = ["version: 1", f"name: bench_{'sequence' if sequential else 'side_by_side'}", "agent: bench", "steps:"]
    for number in range(steps):
        lines += [f"  s{number}:", "    action: nothing", f"    grants: {{ db: {GRANT} }}"]
        if sequential and number:
            lines.append(f"    needs: [s{number - 1}]")
    return load_text("\n".join(lines), filename="bench.yaml", actions=Catalog())


def install(client: hvac.Client, loaded: LoadedWorkflow) -> None:
    for step_id, step in loaded.workflow.steps.items():
        scopes = [normalise(name, grant, step_timeout=step.timeout) for name, grant in step.grants.items()]
        client.sys.create_or_update_policy(f"step/{loaded.workflow.name}/{step_id}", step_policy(scopes))


async def orchestrated(provisioned: Provisioned, loaded: LoadedWorkflow, ledger: Path) -> float:
    config = RunnerConfig(
        vault=provisioned.vault_config(),
        ledger_url=f"sqlite:///{ledger}",
        policy=AllowAllEngine(),
        endpoints=provisioned.endpoints,
        max_parallel=PARALLEL,
    )
    from dataclasses import replace

    async with open_services(config, redactor=Redactor()) as services:
        runner = Runner(replace(services, action=lambda name: Nothing()))
        await services.broker.vault.login(deadline=time.monotonic() + 10)
        begin = time.perf_counter()
        outcome = await runner.run(RunRequest(run_id=new_run_id(), loaded=loaded, inputs={}))
        seconds = time.perf_counter() - begin
    assert outcome.exit_code == 0, outcome.reason
    return seconds


def bare(provisioned: Provisioned, loaded: LoadedWorkflow, *, workers: int) -> float:
    runtime = hvac.Client(provisioned.info.vault_address)
    runtime.auth.approle.login(provisioned.role_id, provisioned.secret_id.reveal())

    def one(step_id: str) -> None:
        policy = f"step/{loaded.workflow.name}/{step_id}"
        wish = {"policies": [policy], "display_name": "bench-0123456789ab", "ttl": "90s", "explicit_max_ttl": "90s"}
        token = runtime.adapter.post("/v1/auth/token/create/orchestrator-step", json=wish)["auth"]
        step = hvac.Client(provisioned.info.vault_address, token=token["client_token"], session=runtime.session)
        lease = step.adapter.get("/v1/database/creds/feedback-read")
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


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--steps", type=int, default=100)
    options.add_argument("--rounds", type=int, default=3)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder, DevStack(Path(folder) / "stack") as info:
        provisioned = provision_stack(info, declarations=ROOT / "vault", workflows=ROOT / "workflows")
        client = hvac.Client(info.vault_address, token=info.root_token.reveal())
        for sequential in (True, False):
            loaded = workflow(given.steps, sequential=sequential)
            install(client, loaded)
            workers = 1 if sequential else PARALLEL
            bare(provisioned, loaded, workers=workers)
            ours, theirs = [], []
            for round_number in range(given.rounds):
                ledger = Path(folder) / f"{loaded.workflow.name}-{round_number}.db"
                theirs.append(bare(provisioned, loaded, workers=workers))
                ours.append(asyncio.run(orchestrated(provisioned, loaded, ledger)))
            ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
            print(
                f"{given.steps} steps {'one after another' if sequential else f'side by side ({PARALLEL})'}: "
                f"orchestrator {statistics.median(ours):.2f} s, bare hvac {statistics.median(theirs):.2f} s, "
                f"ratio {statistics.median(ratios):.2f} (min {min(ratios):.2f}, max {max(ratios):.2f})"
            )


if __name__ == "__main__":
    main()
