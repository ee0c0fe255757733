"""`orchestrator serve`: a folder of workflows, each run when its schedule says so, until a signal comes.

The first SIGTERM or SIGINT drains: nothing new is started, what runs may end within `drain` seconds and
is cancelled then. A second signal cancels at once. A cancelled run revokes what it holds before it ends.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.actions.catalog import catalog
from orchestrator.assembly import RunnerConfig, open_services
from orchestrator.errors import ExitCode, UsageError
from orchestrator.ledger.coordination.schedules import open_schedules
from orchestrator.ledger.events import Event
from orchestrator.ledger.lease import OPEN
from orchestrator.redaction.redactor import Redactor
from orchestrator.runs.types import Services
from orchestrator.scheduling.entry import SchedulerContext
from orchestrator.scheduling.folder import WorkflowFolder
from orchestrator.scheduling.launcher import Launcher
from orchestrator.scheduling.queue import claiming
from orchestrator.scheduling.scheduler import Scheduler
from orchestrator.server.descriptors import raise_descriptor_limit
from orchestrator.server.maintenance import Maintenance, maintained
from orchestrator.server.readiness import STALLED_SECONDS, Readiness, policy_state
from orchestrator.server.upkeep import upkeep
from orchestrator.signals import EXIT_CODES, handled
from orchestrator.telemetry.event_log import log_event
from orchestrator.telemetry.metrics import Metrics
from orchestrator.telemetry.observed_ledger import Observer, both

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

    from orchestrator.server.api.service import Api, ApiConfig

log = logging.getLogger(__name__)

CLAIM_SECONDS = 0.5
"""Between two looks into the queue."""

SWEEP_SECONDS = 900.0
"""Between two sweeps of expired logins: they are of no use to anybody, and each look is itself on record."""

Hooks = Callable[[Services], Sequence[Maintenance]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """What the scheduler is told from outside. `drain` in seconds; `listen` is `HOST:PORT` or None.

    Without a folder nothing is scheduled; with `queue` runs of the shared queue are carried out, no more at
    once for each connection than `connection_runs` says, over all workers. `sweep_interval` is in seconds, and
    one for all processes on a ledger. With `approvals` the listener also takes them. `api` answers agents.
    """

    folder: Path | None
    max_runs: int = 8
    drain: float = 60.0
    listen: str | None = "127.0.0.1:9464"
    approvals: bool = False
    queue: bool = False
    connection_runs: Mapping[str, int] = field(default_factory=dict)
    sweep_interval: float = SWEEP_SECONDS
    api: ApiConfig | None = None


@dataclass(slots=True)
class _Stop:
    """What the signals have asked for."""

    drain: asyncio.Event = field(default_factory=asyncio.Event)
    now: asyncio.Event = field(default_factory=asyncio.Event)
    code: ExitCode = ExitCode.TERMINATED


async def serve(
    runner: RunnerConfig,
    config: ServeConfig,
    *,
    redactor: Redactor,
    observer: Observer | None = None,
    maintenance: Hooks = lambda services: (),
) -> ExitCode:
    """Schedule until a signal comes, and answer how it ended.

    `observer` is told of all events, `maintenance` gives the hooks that are carried out beside the runs.
    DONE: every run had ended by itself and nothing is left. TERMINATED or INTERRUPTED: runs had to be
    cancelled. UNCONFIRMED: a revocation is not confirmed. Raises UsageError and LedgerError if it cannot begin.
    """
    raise_descriptor_limit()
    bound, metrics = _observed(config.listen)
    api_bound = config.api.bound() if config.api else None
    launcher = Launcher(max_runs=config.max_runs, redactor=redactor)

    def observe(run_id: str, time: datetime, event: Event) -> None:
        launcher.observe(run_id, event)
        metrics.event(run_id, time, event)
        log_event(run_id, event)

    everybody = both(observe, observer)
    stop = _Stop()
    try:
        with _signals(stop), open_schedules(runner.ledger_url) as store:
            async with (
                open_services(runner, redactor=redactor, observer=everybody) as services,
                AsyncExitStack() as stack,
            ):
                context = SchedulerContext(services=services, store=store, launcher=launcher, metrics=metrics)
                folder = WorkflowFolder(config.folder, catalog, endpoints=services.endpoints)
                scheduler = Scheduler(context, folder)
                api = await stack.enter_async_context(_api(config.api, api_bound, services, folder))
                hooks = [
                    *upkeep(services, launcher, metrics, sweep_interval=config.sweep_interval),
                    *_queue(services, launcher, config),
                    *maintenance(services),
                    *(api.hooks() if api else ()),
                ]
                async with (
                    _listening(
                        bound,
                        scheduler,
                        Readiness(services, store, metrics),
                        services,
                        metrics,
                        stop,
                        approvals=config.approvals,
                    ),
                    maintained(hooks, metrics),
                ):
                    cut_short = await _until_drained(scheduler, launcher, api, stop, config.drain)
                return _ended(services, launcher, stop, cut_short=cut_short)
    finally:
        for each in (bound, api_bound):
            if each is not None:
                each.close()


async def _until_drained(
    scheduler: Scheduler, launcher: Launcher, api: Api | None, stop: _Stop, seconds: float
) -> bool:
    """Schedule until a signal comes, then let the runs end; whether any had to be cancelled."""
    loop_task = asyncio.create_task(scheduler.run(), name="scheduler")
    stopped = asyncio.create_task(stop.drain.wait())
    try:
        await asyncio.wait([loop_task, stopped], return_when=asyncio.FIRST_COMPLETED)
        if loop_task.done():
            loop_task.result()  # it never ends by itself: this raises what ended it
    finally:
        stopped.cancel()
        loop_task.cancel()
        await asyncio.wait([loop_task])
        await scheduler.stop()
        calls = asyncio.create_task(api.drain(seconds, stop.now)) if api else None
        cut_short = await _drained(launcher, stop, seconds)
        if calls is not None:
            await calls
    return cut_short


@asynccontextmanager
async def _api(
    config: ApiConfig | None, bound: socket.socket | None, services: Services, folder: WorkflowFolder
) -> AsyncIterator[Api | None]:
    if config is None or bound is None:
        yield None
        return
    from orchestrator.server.api.service import Types, answering

    with suppress(UsageError):  # the scheduler says it, and tries again
        await asyncio.to_thread(folder.read)  # so that nobody is told that there is no such task who comes at once
    types = Types(lambda: folder.tasks)
    async with answering(config, bound, services, types, lambda: folder.signing_keys) as api:
        yield api


async def _drained(launcher: Launcher, stop: _Stop, seconds: float) -> bool:
    running = launcher.active
    if running:
        log.info("waiting up to %gs for %d runs", seconds, len(running))
    ended = asyncio.ensure_future(launcher.wait(running, seconds=seconds))
    hurry = asyncio.ensure_future(stop.now.wait())
    await asyncio.wait([ended, hurry], return_when=asyncio.FIRST_COMPLETED)
    hurry.cancel()
    left = launcher.active
    for launched in left:
        log.warning("cancelling run %s", launched.run_id, extra={"run": launched.run_id})
        launched.cancel(stop.code, "the scheduler was stopped")
    await launcher.wait(left)
    await ended
    return bool(left)


def _ended(services: Services, launcher: Launcher, stop: _Stop, *, cut_short: bool) -> ExitCode:
    still_open = 0
    for lease_id in launcher.unconfirmed:
        record = services.reader.lease(lease_id)
        still_open += record is None or record.state in OPEN
    if still_open:
        log.error("%d leases are not confirmed gone; `orchestrator leases sweep` closes them", still_open)
        return ExitCode.UNCONFIRMED
    return stop.code if cut_short else ExitCode.DONE


def _queue(services: Services, launcher: Launcher, config: ServeConfig) -> Sequence[Maintenance]:
    if not config.queue:
        return ()
    claim = claiming(services, launcher, config.connection_runs, max_runs=config.max_runs)
    return [(CLAIM_SECONDS, claim)]


def _observed(address: str | None) -> tuple[socket.socket | None, Metrics]:
    """The socket of the listener and what it shows; nothing is measured for nobody. Raises UsageError."""
    if address is None:
        return None, Metrics()
    try:
        from orchestrator.server.listener import bind
        from orchestrator.telemetry.prometheus import PrometheusMetrics
    except ImportError as error:
        raise UsageError(
            f"the listener needs the package {error.name}",
            hint="pip install 'credential-orchestrator[serve]', or give --no-listen",
        ) from error
    return bind(address), PrometheusMetrics()


@asynccontextmanager
async def _listening(
    bound: socket.socket | None,
    scheduler: Scheduler,
    readiness: Readiness,
    services: Services,
    metrics: Metrics,
    stop: _Stop,
    *,
    approvals: bool,
) -> AsyncIterator[None]:
    if bound is None:
        yield
        return
    from orchestrator.server.listener import listener_app, listening

    async def health() -> Mapping[str, str]:
        turning = not scheduler.loaded or stop.drain.is_set() or scheduler.silent_for() < STALLED_SECONDS
        return {"loop": "ok" if turning else "stalled"}

    async def ready() -> Mapping[str, str]:
        workflows = "draining" if stop.drain.is_set() else "ok" if scheduler.loaded else "loading"
        return {**await readiness.check(), "policy": policy_state(services.policy), "workflows": workflows}

    routes: Sequence[BaseRoute] = ()
    if approvals:
        from orchestrator.server.approvals import approval_routes

        routes = approval_routes(services, services.slack)
    host, port = bound.getsockname()[:2]
    async with listening(listener_app(health=health, readiness=ready, metrics=metrics, routes=routes), bound):
        log.info("listening at %s:%d", host, port, extra={"address": f"{host}:{port}"})
        yield


@contextmanager
def _signals(stop: _Stop) -> Iterator[None]:
    def on_signal(number: signal.Signals) -> None:
        if stop.drain.is_set():
            stop.now.set()
            log.warning("%s again: the runs are cancelled, and revoke what they hold", number.name)
            return
        stop.code = EXIT_CODES[number]
        stop.drain.set()
        log.info("%s: no new runs", number.name)

    with handled(on_signal):
        yield
