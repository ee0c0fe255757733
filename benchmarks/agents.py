"""Agents that call tools at the same time, beside bare hvac with the same calls to Vault and the same concurrency.

16 agents, each with an open task, call a tool with one database lease and an action that does nothing, one call after
another, for some seconds. The bare loop makes the Vault calls that issue and take back the same lease: child token,
login, revoke the lease synchronously, revoke the token. Both log in before the clock starts and take turns. Prints
calls a second, the ratio of both, and what the broker adds to a call: its time without that in which Vault was asked
for it, so the record, the database's confirmation, and waiting for a processor. Nothing may be left in Vault or in the
database afterwards, and opening a hundred tasks that nobody uses asks Vault for nothing.

    python benchmarks/agents.py [--agents 16] [--seconds 30] [--rounds 1] [--durable]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

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
from orchestrator.vault.session import VaultSession
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


IDLE_TASKS = 100


class VaultTimes:
    """When Vault was asked by whom, as pairs of beginning and end; a call has its own list."""

    def __init__(self, vault: VaultSession) -> None:
        self.of_call: ContextVar[list[tuple[float, float]]] = ContextVar("of_call")
        self.asked = 0
        self._ask = vault.request
        vault.request = self._timed  # type: ignore[method-assign]

    async def _timed(self, *given: Any, **more: Any) -> dict[str, Any]:
        self.asked += 1
        begin = time.perf_counter()
        try:
            return await self._ask(*given, **more)
        finally:
            self.of_call.get([]).append((begin, time.perf_counter()))


def without(took: float, asked: list[tuple[float, float]]) -> float:
    """What is left of a call besides the time in which Vault was asked for it."""
    in_vault, until = 0.0, 0.0
    for begin, end in sorted(asked):
        in_vault += max(0.0, end - max(begin, until))
        until = max(until, end)
    return took - in_vault


async def brokered(
    stack: Servers, loaded: LoadedWorkflow, ledger: str, *, agents: int, seconds: float
) -> tuple[int, list[float], list[float]]:
    """How many calls ended, how long each took, and how long without Vault."""
    async with open_services(replace(stack.config(ledger, parallel=agents), keeps=True), redactor=Redactor()) as opened:
        services = replace(opened, action=lambda name: Nothing())
        await services.broker.vault.login(deadline=time.monotonic() + 10)
        desk = TaskDesk(services, {loaded.workflow.name: loaded})
        vault = VaultTimes(services.broker.vault)
        idle = Caller("idle", "bench", "idle")
        for _ in range(IDLE_TASKS):
            await desk.open(idle, loaded.workflow.name, {})
        assert vault.asked == 0, "an open task that nobody uses costs no call to Vault"
        took: list[float] = []
        ours: list[float] = []

        async def agent(number: int) -> None:
            caller = Caller(f"agent-{number}", "bench", f"agent-{number}")
            task = await desk.open(caller, loaded.workflow.name, {})
            while time.perf_counter() < until:
                vault.of_call.set(asked := [])
                begin = time.perf_counter()
                result = await desk.call(caller, task.task_id, "read", {}, str(uuid.uuid4()))
                took.append(time.perf_counter() - begin)
                ours.append(without(took[-1], asked))
                assert result.state is CallState.DONE, result.reason
            assert await desk.close(caller, task.task_id)

        begin = time.perf_counter()
        until = begin + seconds
        await asyncio.gather(*(agent(number) for number in range(agents)))
        return round(len(took) * seconds / (time.perf_counter() - begin)), took, ours


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


def spread(times: list[float]) -> str:
    """The median and the 99th percentile."""
    p50, p99 = (sorted(times)[min(len(times) - 1, int(len(times) * part))] * 1000 for part in (0.5, 0.99))
    return f"p50 {p50:.0f} ms, p99 {p99:.0f} ms"


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
            ours, our_times, without_vault = asyncio.run(brokered(stack, loaded, f"agents-{number}", **how))
            ratios.append(ours / theirs)
            print(f"{given.agents} agents, {given.seconds:g} s, ratio {ours / theirs:.2f}")
            for who, rate, times in (("broker", ours, our_times), ("bare hvac", theirs, their_times)):
                print(f"  {who} {rate / given.seconds:.1f} calls/s, {spread(times)}")
            print(f"  of a call, without Vault: {spread(without_vault)}")
            assert database_leases(stack.provisioned) == []
        print(f"ratio {statistics.median(ratios):.2f} (min {min(ratios):.2f}, max {max(ratios):.2f})")


if __name__ == "__main__":
    main()
