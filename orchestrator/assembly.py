"""Puts the parts together for one process, and takes them apart again in reverse order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from orchestrator import extensions
from orchestrator.actions.catalog import action
from orchestrator.actions.confinement import Confinement
from orchestrator.actions.process.private_folders import remove_left_behind
from orchestrator.approvals.desk import ApprovalDesk
from orchestrator.approvals.slack import SlackApprovals
from orchestrator.clock import Clock, SystemClock
from orchestrator.credentials.broker import Broker
from orchestrator.credentials.duties import DatabaseDuties
from orchestrator.credentials.governor.governor import Coordination, Governor
from orchestrator.credentials.types import Confirm, Duties, Issuer
from orchestrator.credentials.witnesses.dead_login import DeadLogins
from orchestrator.errors import ExitCode
from orchestrator.evidence.log.checkpointing import Checkpointing
from orchestrator.evidence.log.publishing import destinations
from orchestrator.evidence.log.signer import Signer
from orchestrator.evidence.retention import KEPT_FOR_GOOD, Retention
from orchestrator.jsontypes import JsonValue
from orchestrator.ledger.lease import OPEN
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.types import LedgerReader
from orchestrator.network.webhooks import Webhooks
from orchestrator.policy.types import ConnectedEngine, PolicyEngine
from orchestrator.recovery.resumption import resume, run_once
from orchestrator.recovery.retries.retry import WantedRetry, retry_once
from orchestrator.redaction.own_secrets import OwnSecrets, secrets_in
from orchestrator.redaction.redactor import Redactor
from orchestrator.runs.heartbeat import Heartbeat
from orchestrator.runs.processes import certainly_gone
from orchestrator.runs.types import Interruption, RunOutcome, RunRequest, Services
from orchestrator.runs.waiting_time import WaitingTime
from orchestrator.secret import Secret
from orchestrator.signals import Interruptions, handled
from orchestrator.tasks.kept_sweeps import keeping
from orchestrator.telemetry.observed_ledger import ObservedLedger, Observer, both
from orchestrator.vault.config import VaultConfig
from orchestrator.vault.login_request import standing_secrets
from orchestrator.vault.session import VaultSession

if TYPE_CHECKING:
    from orchestrator.issuers.declared import DeclaredIssuer
    from orchestrator.ledger.writing.store import Ledger

_GIVE_BACK_SECONDS = 5.0
"""How long giving the runtime's own token back may take at the very end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerConfig:
    """What a runner is told from outside. `grace` is in seconds; see `orchestrator.settings` for the meanings."""

    vault: VaultConfig
    ledger_url: str
    policy: PolicyEngine
    endpoints: Mapping[str, str] = field(default_factory=dict)
    primaries: Mapping[str, str] = field(default_factory=dict)
    token_issuer: str | None = None
    issuers: Mapping[str, DeclaredIssuer] = field(default_factory=dict)
    grace: float = 30.0
    max_output_bytes: int = 1 << 20
    max_parallel: int = 8
    settle: float = 95.0
    confirm: Mapping[str, Confirm] = field(default_factory=dict)
    try_dead_logins: bool = True
    connection_leases: Mapping[str, int] = field(default_factory=dict)
    dead_after: float = 15.0
    max_takeovers: int = 3
    confinement: Confinement = Confinement.BEST
    role: str = "run"
    """What this process is, for people who look at those on a ledger."""
    max_runs: int | None = None
    """How many runs it carries out at once, for the same."""
    parks: bool = False
    keeps: bool = False
    """Whether the session that asks a database whether logins are gone is kept for a while: for services."""
    slack: SlackApprovals | None = None
    notify: Mapping[str, Secret] = field(default_factory=dict)
    history_publish: Mapping[str, Secret] = field(default_factory=dict)
    retention: Retention = KEPT_FOR_GOOD
    own_secrets: tuple[Secret, ...] = ()
    """Further secrets that this process was told, which no output may hold."""
    printed: Callable[[str, int, bytes], None] | None = None
    """Told what programs of steps write, where somebody follows the only run of this process."""
    clock: Clock = field(default_factory=SystemClock)


@asynccontextmanager
async def open_services(
    config: RunnerConfig, *, redactor: Redactor, observer: Observer | None = None
) -> AsyncIterator[Services]:
    """The services of this process. Leaving the context gives the runtime's Vault token back."""
    published = destinations(config.history_publish)
    await asyncio.to_thread(remove_left_behind)
    ledger = open_ledger(config.ledger_url, clock=config.clock)
    heartbeat = Heartbeat(ledger.runners, role=config.role, max_runs=config.max_runs, clock=config.clock)
    governor = _governor(config, ledger, heartbeat)
    if governor is not None:
        observer = both(governor.recorded, observer)
    writer = ObservedLedger(ledger, observer, config.clock) if observer else ledger
    addresses = (*config.notify.values(), *config.history_publish.values())
    told = (*config.own_secrets, *addresses, *secrets_in(config.ledger_url))
    own_secrets = OwnSecrets(redactor, standing=lambda: (*told, *standing_secrets(config.vault)))
    vault = VaultSession(
        config.vault, clock=config.clock, remember=own_secrets.remember_token, own_token=heartbeat.remember_token
    )
    signer = Signer(vault, ledger.log)
    checkpointing = Checkpointing(ledger.log, signer, config.clock, published)
    broker = Broker(
        vault=vault,
        ledger=writer,
        issuer=_issuers(),
        remember=redactor.add,
        clock=config.clock,
        grace=config.grace,
        token_issuer=config.token_issuer,
        issuers=config.issuers,
        is_closed=partial(_is_closed, ledger),
        confirm=config.confirm,
        dead_logins=_dead_logins(config),
        governor=governor,
    )
    try:
        async with AsyncExitStack() as stack:
            own = DatabaseDuties(broker, config.endpoints, config.primaries)
            duties: Duties = await stack.enter_async_context(keeping(own, writer, heartbeat)) if config.keeps else own
            yield Services(
                ledger=writer,
                reader=ledger,
                broker=replace(broker, duties=duties),
                policy=config.policy,
                redactor=redactor,
                own_secrets=own_secrets,
                action=action,
                endpoints=config.endpoints,
                primaries=config.primaries,
                clock=config.clock,
                heartbeat=heartbeat,
                queue=ledger.queue,
                agents=ledger.agents,
                checkpointing=checkpointing,
                retention=config.retention,
                approvals=ApprovalDesk(ledger.approvals, vault, config.clock),
                parks=config.parks,
                slack=config.slack,
                waiting_time=WaitingTime(config.clock, ledger, vault),
                max_output_bytes=config.max_output_bytes,
                max_parallel=config.max_parallel,
                grace=config.grace,
                settle=config.settle,
                dead_after=config.dead_after,
                max_takeovers=config.max_takeovers,
                confinement=config.confinement,
                notifier=Webhooks(config.notify),
                printed=config.printed,
            )
    finally:
        given_back = False
        try:
            if ledger.has_written:
                await checkpointing.at_the_end()
            given_back = await vault.aclose(deadline=config.clock.monotonic() + _GIVE_BACK_SECONDS)
        finally:
            await asyncio.to_thread(heartbeat.close, clean=given_back)
            await ledger.aclose()
            if isinstance(config.policy, ConnectedEngine):
                await config.policy.aclose()


async def run_workflow(
    config: RunnerConfig,
    request: RunRequest,
    *,
    redactor: Redactor,
    observer: Observer | None = None,
    notice: Callable[[str], None] = lambda text: None,
    others: Callable[[str], None] = lambda text: None,
) -> RunOutcome:
    """Carry out one run in this process, obeying SIGINT and SIGTERM: first revoke, then end.

    A run id that is in the ledger already is gone on with, or its outcome told. Beside it, what other
    processes left when they died is closed. `notice` is told in one sentence what whoever waits for this run
    must know, and `others`, once at most, what became of other runs.
    """
    return await _with_services(
        config,
        lambda services, interruption: run_once(services, request, interruption, others),
        redactor=redactor,
        observer=observer,
        notice=notice,
    )


async def resume_run(
    config: RunnerConfig,
    run_id: str,
    secrets: dict[str, JsonValue],
    *,
    redactor: Redactor,
    observer: Observer | None = None,
    notice: Callable[[str], None] = lambda text: None,
) -> RunOutcome:
    """Go on with a run that was interrupted. Raises UnknownRun, or UsageError if a living process drives it."""
    return await _with_services(
        config,
        lambda services, interruption: resume(services, run_id, secrets, interruption),
        redactor=redactor,
        observer=observer,
        notice=notice,
    )


async def retry_run(
    config: RunnerConfig,
    wanted: WantedRetry,
    *,
    redactor: Redactor,
    observer: Observer | None = None,
    notice: Callable[[str], None] = lambda text: None,
    say: Callable[[str], None] = lambda text: None,
) -> RunOutcome:
    """Go on from a run that failed, in a run of its own; `say` is told of what it takes over, and of other runs."""
    return await _with_services(
        config,
        lambda services, interruption: retry_once(services, wanted, interruption, say, say),
        redactor=redactor,
        observer=observer,
        notice=notice,
    )


async def _with_services(
    config: RunnerConfig,
    work: Callable[[Services, Interruption], Coroutine[Any, Any, RunOutcome]],
    *,
    redactor: Redactor,
    observer: Observer | None,
    notice: Callable[[str], None],
) -> RunOutcome:
    interruption = Interruption()

    def told(code: ExitCode, reason: str) -> None:
        interruption.exit_code, interruption.reason = code, reason

    async with interruptible_services(
        config, redactor=redactor, observer=observer, interruptions=Interruptions(told, notice)
    ) as (services, interruptions):
        return await interruptions.carry_out(work(services, interruption))


@asynccontextmanager
async def interruptible_services(
    config: RunnerConfig,
    *,
    redactor: Redactor,
    observer: Observer | None = None,
    interruptions: Interruptions | None = None,
) -> AsyncIterator[tuple[Services, Interruptions]]:
    """The services of this process, for work that SIGINT and SIGTERM end after it has revoked what it holds.

    Carry it out with the second of both. A signal while the services are being closed does not cut that short.
    """
    interruptions = interruptions or Interruptions()
    with ExitStack() as stack:
        async with open_services(config, redactor=redactor, observer=observer) as services:
            stack.enter_context(handled(interruptions))
            yield services, interruptions


def _governor(config: RunnerConfig, ledger: Ledger, heartbeat: Heartbeat) -> Governor | None:
    if not config.connection_leases:
        return None
    coordination = Coordination(
        places=ledger.places,
        runners=ledger.runners,
        runner_id=heartbeat.runner_id,
        enter=heartbeat.enter,
        certainly_gone=certainly_gone,
        dead_after=config.dead_after,
    )
    return Governor(config.connection_leases, coordination, config.clock)


def _dead_logins(config: RunnerConfig) -> DeadLogins | None:
    return DeadLogins({**config.endpoints, **config.primaries}, config.clock) if config.try_dead_logins else None


def _is_closed(reader: LedgerReader, lease_id: str) -> bool:
    lease = reader.lease(lease_id)
    return lease is not None and lease.state not in OPEN


def _issuers() -> Callable[[str], Issuer]:
    """One issuer of each kind per process, made when first needed."""

    @cache
    def issuer(kind: str) -> Issuer:
        made: Issuer = extensions.load("orchestrator.issuers", kind)()
        return made

    return issuer
