"""A runner that kills itself with SIGKILL at one named point of the lease life. Started by `test_crash_points`.

Reads one JSON object from standard input: the runner's settings, the workflow, the run id, what to do, and the point.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from orchestrator.actions.catalog import catalog
from orchestrator.assembly import RunnerConfig, open_services
from orchestrator.clock import SystemClock
from orchestrator.credentials.duties import DatabaseDuties
from orchestrator.credentials.issuers.oauth2.refreshing import KeptToken
from orchestrator.issuers.declared import load_issuers
from orchestrator.ledger.events import Event, RunStarted
from orchestrator.ledger.states import RunState
from orchestrator.ledger.types import LedgerWriter
from orchestrator.policy.engines.allow_all import AllowAllEngine
from orchestrator.queue.opening import shared_queue
from orchestrator.recovery.open_leases import close_left_over, left_over
from orchestrator.recovery.resumption import run_once
from orchestrator.recovery.retries.retry import WantedRetry, retry_once
from orchestrator.recovery.takeover import Recovery
from orchestrator.redaction.redactor import Redactor
from orchestrator.runs.runner import Runner
from orchestrator.runs.types import Interruption, RunRequest, Services
from orchestrator.scheduling.launcher import Launcher
from orchestrator.secret import Secret
from orchestrator.server.maintenance import maintained
from orchestrator.server.upkeep import upkeep
from orchestrator.server.working import working
from orchestrator.telemetry.metrics import Metrics
from orchestrator.vault.config import AppRoleAuth, VaultConfig
from orchestrator.workflow.inputs import bind_inputs
from orchestrator.workflow.loader import load_text


@dataclass
class FatalLedger:
    """Writes through, and dies before or after the commit of the n-th event of a run that is wanted."""

    run: str
    ledger: LedgerWriter
    kind: str
    grant_kind: str
    when: str
    count: int
    kinds: dict[str, str]

    async def begin_run(self, run_id: str, started: RunStarted, also: Sequence[Event] = ()) -> int:
        fatal = run_id == self.run and self._wanted(started)
        if fatal and self.when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        fence = await self.ledger.begin_run(run_id, started, also)
        if fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return fence

    async def take_over(self, run_id: str, *, ended: bool = False) -> int:
        return await self.ledger.take_over(run_id, ended=ended)

    async def append(self, run_id: str, fence: int, events: Sequence[Event]) -> None:
        fatal = run_id == self.run and any(self._wanted(event) for event in events)
        if fatal and self.when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        await self.ledger.append(run_id, fence, events)
        if fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    async def request(self, run_id: str, fence: int, events: Sequence[Event], places: Mapping[str, int]) -> None:
        await self.ledger.request(run_id, fence, events, places)

    async def aclose(self) -> None:
        await self.ledger.aclose()

    def _wanted(self, event: Event) -> bool:
        lease = getattr(event, "lease_id", "")
        if event.kind == "lease.requested":
            self.kinds[lease] = str(getattr(event, "grant_kind", ""))
        if event.kind != self.kind or (self.grant_kind and self.kinds.get(lease, self.grant_kind) != self.grant_kind):
            return False
        self.count -= 1
        return self.count == 0


LATER = -600.0
"""As `settle`: ten minutes have passed, so every request of before is over and every token has ended."""


@dataclass(frozen=True)
class Ahead(SystemClock):
    """The wall clock is wrong by so much."""

    by: timedelta

    def now(self) -> datetime:
        return super().now() + self.by


def config_of(given: dict[str, Any]) -> RunnerConfig:
    auth = AppRoleAuth(given["role_id"], Secret(given["secret_id"]))
    return RunnerConfig(
        vault=VaultConfig(given["vault"], auth),
        ledger_url=given["ledger"],
        policy=AllowAllEngine(),
        endpoints=given["endpoints"],
        token_issuer=given["issuer"],
        issuers=load_issuers(Path(given["issuers"])) if "issuers" in given else {},
        grace=given.get("grace", 5.0),
        dead_after=4.0,
        settle=LATER if given.get("later") else given.get("settle", 95.0),
        clock=Ahead(timedelta(hours=given.get("hours_ahead", 0))),
    )


async def work(services: Services, given: dict[str, Any], launcher: Launcher) -> int:
    if given["do"] == "work":
        return await work_off(services, given, launcher)
    if given["do"] == "recover":
        for found in await Recovery(services, goes_on=lambda record: True).until_decided():
            if found.resumable is not None:
                await Runner(services).resume(found.resumable)
        await close_left_over(services, left_over(services.reader))
        return 0
    if given["do"] == "retry":
        wanted = WantedRetry(of=given["of"], run_id=given["run"], given={})
        return int((await retry_once(services, wanted, Interruption(), unsaid, unsaid)).exit_code)
    loaded = load_text(given["workflow"], filename="crash.yaml", actions=catalog)
    request = RunRequest(run_id=given["run"], loaded=loaded, inputs=bind_inputs(loaded.workflow, {}))
    return int((await run_once(services, request, Interruption())).exit_code)


async def work_off(services: Services, given: dict[str, Any], launcher: Launcher) -> int:
    """Be a worker of the shared queue until the run has ended."""
    with shared_queue(given["ledger"], services.queue) as shared:
        over = asyncio.Event()
        async with working(
            services,
            shared,
            launcher,
            ledger_url=given["ledger"],
            max_runs=2,
            offered=lambda name: None,
            stopped=over.is_set,
        ) as hooks:
            everything = [*upkeep(services, launcher, Metrics(), sweep_interval=900, wake=shared.wake), *hooks]
            async with maintained(everything, Metrics()):
                while (run := services.reader.run(given["run"])) is None or run.state is RunState.RUNNING:
                    await asyncio.sleep(0.05)
                while shared.standing([given["run"]])[0].status == "PENDING":
                    await asyncio.sleep(0.05)
                over.set()
        await close_left_over(services, left_over(services.reader))
    return 0


def unsaid(text: str) -> None:
    """Nobody listens."""


async def dies(*anything: Any) -> bool:
    os.kill(os.getpid(), signal.SIGKILL)
    return False


async def main(given: dict[str, Any]) -> int:
    if given.get("dies_before_storing"):
        KeptToken.give_back = dies  # type: ignore[method-assign]
    redactor = Redactor()
    launcher = Launcher(max_runs=2, redactor=redactor)
    async with open_services(
        config_of(given), redactor=redactor, observer=lambda run, time, event: launcher.observe(run, event)
    ) as services:
        point = given.get("point")
        if point is None:
            return await work(services, given, launcher)
        fatal = FatalLedger(
            given["run"], services.ledger, point["kind"], point["grant_kind"], point["when"], point["count"], {}
        )
        broker = replace(services.broker, ledger=fatal)
        inner = replace(broker, duties=None)
        broker = replace(broker, duties=DatabaseDuties(inner, services.endpoints))
        return await work(replace(services, ledger=fatal, broker=broker), given, launcher)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    sys.exit(asyncio.run(main(json.loads(sys.stdin.read()))))
