"""The processes of `shared_queue.py`: workers of the shared queue, workers of a bare DBOS, and one that holds a lease.

Each says `ready` on its standard output when it is, and ends at SIGTERM.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import psutil
from dbos import DBOS

from orchestrator.actions.base import StepContext
from orchestrator.actions.process.exec import Exec
from orchestrator.assembly import RunnerConfig, open_services
from orchestrator.errors import ExitCode
from orchestrator.jsontypes import JsonObject
from orchestrator.ledger.events import Event, LeaseIssued, LeaseRequested, LeaseRevoked, LeaseRevoking, RunStarted
from orchestrator.ledger.ids import new_lease_id, new_run_id
from orchestrator.ledger.states import RunState
from orchestrator.policy.engines.allow_all import AllowAllEngine
from orchestrator.queue.opening import shared_queue
from orchestrator.queue.references import References
from orchestrator.redaction.redactor import Redactor
from orchestrator.scheduling.launcher import Launcher
from orchestrator.secret import Secret
from orchestrator.server.maintenance import maintained, name_of
from orchestrator.server.upkeep import upkeep
from orchestrator.server.working import working
from orchestrator.telemetry.metrics import Metrics
from orchestrator.vault.config import TokenAuth, VaultConfig

BARE = "bench"
"""The names of bare DBOS's application, version, schema and queue."""

BARE_WORKFLOW = "bench.nothing"

BUSY = "busy"
"""The connection of which one lease may be open at once, and one is."""

ASK_VAULT = ("irrevocable",)
"""What a worker does once a minute at Vault, which there is not."""

SWEEP_SECONDS = 900.0


class Nothing(Exec):
    """In the place of `exec`, which the ledger's text of a workflow may name: does nothing."""

    async def run(self, params: Any, context: StepContext) -> JsonObject:
        return {}


def config(ledger_url: str, *, role: str = "run", max_runs: int | None = None) -> RunnerConfig:
    """There is no Vault, and none is asked: no database has an address, so none is swept."""
    return RunnerConfig(
        vault=VaultConfig("http://127.0.0.1:1", TokenAuth(Secret("never used"))),
        ledger_url=ledger_url,
        policy=AllowAllEngine(),
        connection_leases={BUSY: 1},
        role=role,
        max_runs=max_runs,
        parks=True,
    )


async def ours(given: dict[str, Any]) -> None:
    """What `orchestrator worker` does, without a listener."""
    logging.getLogger("orchestrator.scheduling").setLevel(logging.ERROR)  # of runs that are cancelled at the end
    redactor = Redactor()
    launcher = Launcher(max_runs=given["max_runs"], redactor=redactor)

    def observe(run_id: str, time: datetime, event: Event) -> None:
        launcher.observe(run_id, event)

    stop = _stop()
    url = given["url"]
    told = config(url, role="worker", max_runs=given["max_runs"])
    async with open_services(told, redactor=redactor, observer=observe) as services:
        services = replace(services, action=lambda name: Nothing())
        with shared_queue(url, services.queue) as shared:
            async with working(
                services,
                shared,
                launcher,
                ledger_url=url,
                max_runs=given["max_runs"],
                offered=lambda name: None,
                stopped=stop.is_set,
            ) as hooks:
                beside = upkeep(services, launcher, Metrics(), sweep_interval=SWEEP_SECONDS, wake=shared.wake)
                without_vault = [each for each in beside if name_of(each[1]) not in ASK_VAULT]
                async with maintained([*without_vault, *hooks], Metrics()):
                    await _until(stop)
                    for launched in launcher.active:
                        launched.cancel(ExitCode.TERMINATED, "the worker was stopped")
                    await launcher.wait(launcher.active)


async def holder(given: dict[str, Any]) -> None:
    """Has a lease of BUSY open, as far as the ledger knows."""
    stop = _stop()
    async with open_services(config(given["url"]), redactor=Redactor()) as services:
        run_id, lease_id = new_run_id(), new_lease_id()
        services.heartbeat.begin(run_id, digest="0" * 64, text=None)
        fence = await services.ledger.begin_run(
            run_id,
            RunStarted(workflow="holder", digest="0" * 64, agent="a", trigger="manual", inputs={}, steps=("hold",)),
        )
        requested = LeaseRequested(
            lease_id=lease_id,
            step="hold",
            attempt=1,
            grant="db",
            grant_kind="database",
            resource="never asked for",
            scope={"connection": BUSY},
            ttl=3600,
        )
        until = services.clock.now() + timedelta(hours=1)
        issued = LeaseIssued(lease_id=lease_id, ttl=3600, expires_at=until, vault_lease_id="none", subject="none")
        await services.ledger.append(run_id, fence, [requested, issued])
        await _until(stop)
        ended = LeaseRevoked(lease_id=lease_id, confirmed_by="database")
        await services.ledger.append(run_id, fence, [LeaseRevoking(lease_id=lease_id, reason="step ended"), ended])


@DBOS.workflow(name=BARE_WORKFLOW)
async def nothing() -> RunState:
    return RunState.SUCCEEDED


def bare(given: dict[str, Any]) -> None:
    """A worker of the same DBOS, serializer and settings, with nothing of ours around its workflow."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    DBOS(
        config={
            "name": BARE,
            "application_version": BARE,
            "executor_id": given["name"],
            "system_database_url": given["url"],
            "dbos_system_schema": BARE,
            "serializer": References(),
            "use_listen_notify": False,
            "log_level": "ERROR",
        }
    )
    DBOS.launch()
    print("ready", flush=True)
    stop.wait()
    DBOS.destroy()


def _stop() -> asyncio.Event:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    return stop


async def _until(stop: asyncio.Event) -> None:
    print("ready", flush=True)
    await stop.wait()


@contextmanager
def started(commands: Sequence[Sequence[str]], given: Sequence[dict[str, Any]]) -> Iterator[list[psutil.Process]]:
    """Processes that are ready; each reads what it is given as JSON. They are ended at the end."""
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for command in commands
    ]
    try:
        for process, told in zip(processes, given, strict=True):
            assert process.stdin is not None
            process.stdin.write(json.dumps(told))
            process.stdin.close()
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", f"{process.args} could not begin"
        yield [psutil.Process(process.pid) for process in processes]
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdout is not None
            process.stdout.close()


def command_of(role: str) -> list[str]:
    """How one of the processes of this module is started."""
    return [sys.executable, __file__, role]


@contextmanager
def workers(count: int, url: str, *, max_runs: int) -> Iterator[list[psutil.Process]]:
    """Workers of the shared queue."""
    with started([command_of("ours")] * count, [{"url": url, "max_runs": max_runs}] * count) as processes:
        yield processes


def main() -> None:
    given = json.load(sys.stdin)
    roles: dict[str, Callable[[dict[str, Any]], None]] = {
        "ours": lambda told: asyncio.run(ours(told)),
        "holder": lambda told: asyncio.run(holder(told)),
        "bare": bare,
    }
    roles[sys.argv[1]](given)


if __name__ == "__main__":
    main()
