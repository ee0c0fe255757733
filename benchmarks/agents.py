"""Agents that call tools at the same time, beside bare hvac with the same calls to Vault and the same concurrency.

16 agents, each with an open task, call a tool with one database lease and an action that does nothing, one call after
another, for some seconds. The bare loop makes the Vault calls that issue and take back the same lease: child token,
login, revoke the lease synchronously, revoke the token. Both log in before the clock starts and take turns. Prints
calls a second, the ratio of both, and what the broker adds to a call: its time without that of its Vault calls, which
are timed as they are made. Nothing may be left in Vault or in the database afterwards, and an open task that nobody
uses costs no call to Vault.

    python benchmarks/agents.py [--agents 16] [--seconds 30] [--rounds 1] [--durable]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import hvac
from installed import GRANT, Catalog, Nothing, Servers, servers

from orchestrator.agents.authentication import Caller
from orchestrator.assembly import open_services
from orchestrator.devstack.session import database_leases
from orchestrator.grants.policy_names import step_policy_name, token_role_name
from orchestrator.grants.scope import normalise
from orchestrator.redaction.redactor import Redactor
from orchestrator.tasks.desk import TaskDesk
from orchestrator.tasks.results import CallState
from orchestrator.workflow.loader import LoadedWorkflow, load_text

TASK = f"""
version: 1
name: bench_agents
task: {{ duration: 10m }}
tools:
  read:
    description: Reads nothing.
    grants: {{ db: {GRANT} }}
    action: nothing
    outputs: [rows]
"""


async def brokered(
    stack: Servers, loaded: LoadedWorkflow, ledger: str, *, agents: int, seconds: float
) -> tuple[int, list[float]]:
    """How many calls ended, and how long each took."""
    async with open_services(replace(stack.config(ledger, parallel=agents), keeps=True), redactor=Redactor()) as opened:
        services = replace(opened, action=lambda name: Nothing())
        await services.broker.vault.login(deadline=time.monotonic() + 10)
        desk = TaskDesk(services, {loaded.workflow.name: loaded})
        took: list[float] = []

        async def agent(number: int) -> None:
            caller = Caller(f"agent-{number}", "bench", f"agent-{number}")
            task = await desk.open(caller, loaded.workflow.name, {})
            while time.perf_counter() < until:
                begin = time.perf_counter()
                result = await desk.call(caller, task.task_id, "read", {}, str(uuid.uuid4()))
                took.append(time.perf_counter() - begin)
                assert result.state is CallState.DONE, result.reason
            assert await desk.close(caller, task.task_id)

        begin = time.perf_counter()
        until = begin + seconds
        await asyncio.gather(*(agent(number) for number in range(agents)))
        return round(len(took) * seconds / (time.perf_counter() - begin)), took


def bare(stack: Servers, loaded: LoadedWorkflow, *, agents: int, seconds: float) -> tuple[int, list[float]]:
    """The same of the Vault calls alone."""
    address = stack.provisioned.info.vault_address
    runtime = hvac.Client(address)
    runtime.auth.approle.login(stack.provisioned.role_id, stack.provisioned.secret_id.reveal())
    step = loaded.workflow.parts["read"]
    path = normalise("db", step.grants["db"], step_timeout=step.timeout).resource
    role = token_role_name(step_policy_name(loaded.workflow.name, "read"))
    took: list[float] = []

    def agent(_: int) -> None:
        wish = {"display_name": "bench-0123456789ab", "ttl": "90s"}
        while time.perf_counter() < until:
            begin = time.perf_counter()
            token = runtime.adapter.post(f"/v1/auth/token/create/{role}", json=wish)["auth"]
            own = hvac.Client(address, token=token["client_token"], session=runtime.session)
            lease = own.adapter.get(f"/v1/{path}")
            runtime.adapter.put("/v1/sys/leases/revoke", json={"lease_id": lease["lease_id"], "sync": True})
            runtime.adapter.post("/v1/auth/token/revoke-accessor", json={"accessor": token["accessor"]})
            took.append(time.perf_counter() - begin)

    begin = time.perf_counter()
    until = begin + seconds
    with ThreadPoolExecutor(agents) as pool:
        list(pool.map(agent, range(agents)))
    return round(len(took) * seconds / (time.perf_counter() - begin)), took


def percentile(times: list[float], part: float) -> float:
    return sorted(times)[min(len(times) - 1, int(len(times) * part))] * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--durable", action="store_true", help="let PostgreSQL wait for the disk, as in production")
    given = parser.parse_args()
    loaded = load_text(TASK, filename="bench.yaml", actions=Catalog())
    how = {"agents": given.agents, "seconds": given.seconds}
    with servers(durable=given.durable) as stack:
        stack.install([loaded.workflow])
        bare(stack, loaded, agents=given.agents, seconds=2)
        ratios = []
        for number in range(given.rounds):
            theirs, their_times = bare(stack, loaded, **how)
            ours, our_times = asyncio.run(brokered(stack, loaded, f"agents-{number}", **how))
            ratios.append(ours / theirs)
            print(
                f"{given.agents} agents, {given.seconds:g} s: broker {ours / given.seconds:.1f} calls/s "
                f"(p50 {percentile(our_times, 0.5):.0f} ms, p99 {percentile(our_times, 0.99):.0f} ms), "
                f"bare hvac {theirs / given.seconds:.1f} calls/s (p50 {percentile(their_times, 0.5):.0f} ms, "
                f"p99 {percentile(their_times, 0.99):.0f} ms), ratio {ours / theirs:.2f}"
            )
            assert database_leases(stack.provisioned) == []
        print(f"ratio {statistics.median(ratios):.2f} (min {min(ratios):.2f}, max {max(ratios):.2f})")


if __name__ == "__main__":
    main()
