"""From the settings to the parts that the commands work with."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cli.log_format import LogFormat, formatter
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.approvals.slack import SlackApprovals
    from orchestrator.assembly import RunnerConfig
    from orchestrator.issuers.declared import DeclaredIssuer
    from orchestrator.ledger.types import LedgerReader
    from orchestrator.ledger.writing.store import Ledger
    from orchestrator.policy.types import PolicyEngine
    from orchestrator.provision.service import Provisioning
    from orchestrator.provision.vault.admin import VaultAdmin
    from orchestrator.redaction.redactor import Redactor
    from orchestrator.runs.engines.types import EngineName
    from orchestrator.runs.types import Services
    from orchestrator.secret import Secret
    from orchestrator.settings import Settings
    from orchestrator.signals import Interruptions


@cache
def redactor() -> Redactor:
    """The one redactor of this process: it learns every secret that is issued."""
    from orchestrator.redaction.redactor import Redactor

    return Redactor()


@contextmanager
def ledger_reader() -> Iterator[LedgerReader]:
    """The ledger that the settings name, for reading."""
    from orchestrator.ledger.opening import open_reader

    with open_reader(ledger_url()) as reader:
        yield reader


@contextmanager
def open_store() -> Iterator[Ledger]:
    """The ledger that the settings name."""
    from orchestrator.clock import SystemClock
    from orchestrator.ledger.opening import open_ledger

    ledger = open_ledger(ledger_url(), clock=SystemClock())
    try:
        yield ledger
    finally:
        ledger.close()


def operator() -> str:
    """Who uses the command, as the operating system knows them."""
    import os
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"


def ledger_url() -> str:
    """Where the ledger is. All settings are read only where they have to be: that takes longer than a list."""
    from orchestrator.environment import ledger_location

    if (told := ledger_location()) is not None:
        return told
    from orchestrator.settings import load_settings

    return load_settings().ledger_location()


def policy_engine(settings: Settings) -> PolicyEngine:
    """The policy engine that the settings name; its own token is a secret like those that are issued."""
    from orchestrator.policy.opening import open_engine
    from orchestrator.policy.watched import OnError

    engine = open_engine(
        settings.policy,
        path=settings.policy_path,
        on_error=OnError(settings.policy_on_error),
        options=settings.policy_options,
    )
    if (remember_with := getattr(engine, "remember_with", None)) is not None:
        remember_with(redactor().add)
    return engine


def runner_config(settings: Settings, *, engine: EngineName | None = None, grace: float | None = None) -> RunnerConfig:
    """Everything a runner is told from outside; `engine` and `grace`, in seconds, win over the settings."""
    from orchestrator.assembly import RunnerConfig
    from orchestrator.cli.vault_login import vault_config
    from orchestrator.credentials.types import Confirm
    from orchestrator.secret import Secret

    return RunnerConfig(
        vault=vault_config(settings),
        ledger_url=settings.ledger_location(),
        policy=policy_engine(settings),
        engine=engine or settings.engine,
        endpoints=settings.endpoints,
        primaries=settings.primaries,
        token_issuer=settings.token_issuer,
        issuers=_issuers(settings),
        grace=settings.grace if grace is None else grace,
        max_output_bytes=settings.max_output_bytes,
        max_parallel=settings.max_parallel,
        settle=settings.settle,
        confirm={name: Confirm(word) for name, word in settings.confirm.items()},
        connection_leases=settings.connection_leases,
        dead_after=settings.dead_after,
        max_takeovers=settings.max_takeovers,
        confinement=settings.confinement,
        slack=_slack(settings),
        notify={name: Secret(url.get_secret_value()) for name, url in settings.notify.items()},
        own_secrets=_secrets_of(settings),
    )


def _issuers(settings: Settings) -> Mapping[str, DeclaredIssuer]:
    from orchestrator.issuers.declared import load_issuers

    return {} if settings.issuers is None else load_issuers(settings.issuers)


def _slack(settings: Settings) -> SlackApprovals | None:
    from orchestrator.approvals.slack import SlackApprovals

    if settings.slack_channel is None:
        return None
    if settings.slack_token_file is None:
        raise UsageError(
            "requests for approval cannot be posted to ORCHESTRATOR_SLACK_CHANNEL without a token",
            hint="set ORCHESTRATOR_SLACK_TOKEN_FILE to a file with a bot token that has the scope chat:write",
        )
    return SlackApprovals(settings.slack_channel, settings.slack_token_file, settings.slack_api)


def connected_services() -> AbstractAsyncContextManager[tuple[Services, Interruptions]]:
    """The services of this process as the settings have them, for work that a signal ends after it has cleaned up."""
    from orchestrator.assembly import interruptible_services
    from orchestrator.settings import load_settings

    settings = load_settings()
    log_to_stderr(settings.log_level)
    return interruptible_services(runner_config(settings), redactor=redactor())


def _secrets_of(settings: Settings) -> tuple[Secret, ...]:
    """What this process was told besides what it needs: a program that it starts may come by it as well."""
    from orchestrator.redaction.own_secrets import secrets_in
    from orchestrator.secret import Secret

    addresses = (*settings.provision_databases.values(), *settings.catalog_databases.values())
    told = [secret for address in addresses for secret in secrets_in(address.get_secret_value())]
    given = (settings.auth_secret_id, settings.auth_token)
    return (*told, *(Secret(each.get_secret_value()) for each in given if each is not None))


@contextmanager
def provisioning(workflows: Path, declarations: Path, *, prune: bool) -> Iterator[Provisioning]:
    """The work of provisioning, as the admin whom the settings name."""
    from orchestrator.provision.service import load_workflows, open_provisioning
    from orchestrator.secret import Secret
    from orchestrator.settings import load_settings

    settings = load_settings()
    from orchestrator.cli.vault_login import admin_config

    databases = {name: Secret(dsn.get_secret_value()) for name, dsn in settings.provision_databases.items()}
    with open_provisioning(
        admin_config(settings),
        databases,
        workflows=load_workflows(workflows),
        declarations=declarations,
        prune=prune,
        endpoints=settings.database_addresses,
        token_issuer=settings.token_issuer,
    ) as work:
        yield work


@contextmanager
def vault_admin() -> Iterator[VaultAdmin]:
    """Vault, as the admin whom the settings name."""
    from orchestrator.cli.vault_login import admin_config
    from orchestrator.provision.service import admin_token
    from orchestrator.provision.vault.admin import VaultAdmin
    from orchestrator.settings import load_settings

    config = admin_config(load_settings())
    admin = VaultAdmin(config, admin_token(config))
    try:
        yield admin
    finally:
        admin.close()


def log_to_stderr(level: str, kind: LogFormat = LogFormat.TEXT) -> None:
    """Send log records of this level and above to standard error, with every issued secret taken out."""
    from orchestrator.redaction.redactor import RedactingFilter

    to_stderr = logging.StreamHandler(sys.stderr)
    to_stderr.setFormatter(formatter(kind))
    to_stderr.addFilter(RedactingFilter(redactor()))
    logging.basicConfig(level=level.upper(), handlers=[to_stderr], force=True)
    if level == "info":  # what libraries tell of themselves is for those who look for faults
        for library in ("alembic", "uvicorn", "httpx", "mcp"):
            logging.getLogger(library).setLevel(logging.WARNING)
