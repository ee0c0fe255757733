"""`orchestrator serve`: a folder of workflows, each run when its schedule says so, until a signal comes.

The first SIGTERM or SIGINT drains: nothing new is started, what runs may end within `drain` seconds and
is cancelled then. A second signal cancels at once. A cancelled run revokes what it holds before it ends.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.actions.catalog import catalog
from orchestrator.assembly import RunnerConfig, open_services
from orchestrator.errors import ExitCode, UsageError
from orchestrator.ledger.coordination.schedules import ScheduleStore, open_schedules
from orchestrator.ledger.events import Event
from orchestrator.ledger.lease import OPEN
from orchestrator.queue.opening import check_ledger, shared_queue
from orchestrator.redaction.redactor import Redactor
from orchestrator.runs.types import Services
from orchestrator.scheduling.entry import SchedulerContext
from orchestrator.scheduling.folder import WorkflowFolder
from orchestrator.scheduling.launcher import Launcher
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

    from orchestrator.queue.shared import SharedQueue
    from orchestrator.server.api.service import Api, ApiConfig
    from orchestrator.server.pages.login.declared import Login
    from orchestrator.server.pages.serving import Pages
    from orchestrator.workflow.loader import LoadedWorkflow

log = logging.getLogger(__name__)

LOST_SECONDS = 1.0
"""Between two looks whether others have taken this process for dead."""

SWEEP_SECONDS = 900.0
"""Between two sweeps of expired logins: they are of no use to anybody, and each look is itself on record."""

Hooks = Callable[[Services], Sequence[Maintenance]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    """What the scheduler is told from outside. `drain` in seconds; `listen` is `HOST:PORT` or None.

    Without a folder nothing is scheduled. With `queue` what is due is put into the shared queue; with `works` runs of
    that queue are carried out, those of `offered` also where another program asks for them by their name.
    `sweep_interval` is in seconds, and one for all processes on a ledger. With `approvals` the listener also takes
    them. With `pages` it shows the pages, to whoever may log in, or to whoever asks where nobody has to. `api` answers
    agents.
    """

    folder: Path | None
    max_runs: int = 8
    drain: float = 60.0
    listen: str | None = "127.0.0.1:9464"
    approvals: bool = False
    pages: Login | bool = False
    queue: bool = False
    works: bool = False
    offered: Path | None = None
    sweep_interval: float = SWEEP_SECONDS
    api: ApiConfig | None = None


@dataclass(slots=True)
class _Stop:
    """What the signals have asked for."""

    drain: asyncio.Event = field(default_factory=asyncio.Event)
    now: asyncio.Event = field(default_factory=asyncio.Event)
    lost: bool = False
    """It is not a signal: others have taken this process for dead."""
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
    if config.queue or config.works:
        check_ledger(runner.ledger_url)
    while True:
        code = await _served(runner, config, redactor=redactor, observer=observer, maintenance=maintenance)
        if code is not None:
            return code
        log.warning("others had taken this process for dead; it begins anew, under another name")


async def _served(
    runner: RunnerConfig, config: ServeConfig, *, redactor: Redactor, observer: Observer | None, maintenance: Hooks
) -> ExitCode | None:
    """Until a signal comes; None where others have taken this process for dead."""
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
                shared = _shared(stack, runner, config, services)
                context = SchedulerContext(
                    services=services,
                    store=store,
                    launcher=launcher,
                    metrics=metrics,
                    shared=shared if config.queue else None,
                )
                folder = WorkflowFolder(config.folder, catalog, endpoints=services.endpoints)
                scheduler = Scheduler(context, folder)
                api = await stack.enter_async_context(_api(config.api, api_bound, services, folder))
                hooks = [
                    *upkeep(
                        services,
                        launcher,
                        metrics,
                        sweep_interval=config.sweep_interval,
                        wake=shared.wake if shared is not None else None,
                    ),
                    *await _working(stack, runner, config, services, shared, launcher, metrics, stop),
                    (LOST_SECONDS, _lost(services, stop)),
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
                        pages=_pages(services, store, folder, config.pages, bound),
                    ),
                    maintained(hooks, metrics),
                ):
                    cut_short = await _until_drained(scheduler, launcher, api, stop, config.drain)
                return None if stop.lost else _ended(services, launcher, stop, cut_short=cut_short)
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


def _shared(stack: AsyncExitStack, runner: RunnerConfig, config: ServeConfig, services: Services) -> SharedQueue | None:
    if not (config.queue or config.works):
        return None
    return stack.enter_context(shared_queue(runner.ledger_url, services.queue))


async def _working(
    stack: AsyncExitStack,
    runner: RunnerConfig,
    config: ServeConfig,
    services: Services,
    shared: SharedQueue | None,
    launcher: Launcher,
    metrics: Metrics,
    stop: _Stop,
) -> Sequence[Maintenance]:
    if shared is None or not config.works:
        return ()
    from orchestrator.server.working import working

    offered = WorkflowFolder(config.offered, catalog, endpoints=services.endpoints)

    def find(name: str) -> LoadedWorkflow | None:
        known = offered.read().workflows.get(name)
        return None if known is None else known.load()

    return await stack.enter_async_context(
        working(
            services,
            shared,
            launcher,
            ledger_url=runner.ledger_url,
            max_runs=config.max_runs,
            offered=find,
            stopped=stop.drain.is_set,
            metrics=metrics,
        )
    )


def _lost(services: Services, stop: _Stop) -> Callable[[], Awaitable[None]]:
    """See that others have taken this process for dead: its runs are theirs, and it has to begin anew."""

    async def lost() -> None:
        if services.heartbeat.is_lost and not stop.drain.is_set():
            stop.lost = True
            stop.now.set()
            stop.drain.set()

    return lost


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
    pages: Pages | None,
) -> AsyncIterator[None]:
    if bound is None:
        yield
        return
    from orchestrator.server.connections import BoundedProtocol
    from orchestrator.server.listener import listener_app, listening

    async def health() -> Mapping[str, str]:
        turning = not scheduler.loaded or stop.drain.is_set() or scheduler.silent_for() < STALLED_SECONDS
        return {"loop": "ok" if turning else "stalled"}

    async def ready() -> Mapping[str, str]:
        workflows = "draining" if stop.drain.is_set() else "ok" if scheduler.loaded else "loading"
        return {**await readiness.check(), "policy": policy_state(services.policy), "workflows": workflows}

    routes: list[BaseRoute] = []
    protocol = BoundedProtocol
    if approvals:
        from orchestrator.server.approvals import approval_routes

        routes += approval_routes(services, services.slack)
    if pages is not None:
        routes += pages.routes
        protocol = pages.protocol
    host, port = bound.getsockname()[:2]
    app = listener_app(health=health, readiness=ready, metrics=metrics, routes=routes)
    async with listening(app, bound, protocol=protocol):
        log.info("listening at %s:%d", host, port, extra={"address": f"{host}:{port}"})
        try:
            yield
        finally:
            if pages is not None:
                await pages.aclose()


def _pages(
    services: Services,
    schedules: ScheduleStore,
    folder: WorkflowFolder,
    login: Login | bool,
    bound: socket.socket | None,
) -> Pages | None:
    if bound is None or login is False:
        return None
    from orchestrator.server.pages.serving import Pages, inside_of, sources_of

    host, port = bound.getsockname()[:2]
    inside = None if isinstance(login, bool) else inside_of(services, login, f"{host}:{port}")
    return Pages(sources_of(services, schedules, folder), inside)


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
