"""From the settings to the parts that the commands work with."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cli.log_format import LogFormat, formatter
from orchestrator.configured.services import redactor, runner_config

if TYPE_CHECKING:
    from orchestrator.ledger.reading.reader import Reader
    from orchestrator.ledger.writing.store import Ledger
    from orchestrator.provision.service import Provisioning
    from orchestrator.provision.vault.admin import VaultAdmin
    from orchestrator.runs.types import Services
    from orchestrator.signals import Interruptions


@contextmanager
def ledger_reader() -> Iterator[Reader]:
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


def connected_services() -> AbstractAsyncContextManager[tuple[Services, Interruptions]]:
    """The services of this process as the settings have them, for work that a signal ends after it has cleaned up."""
    from orchestrator.assembly import interruptible_services
    from orchestrator.settings import load_settings

    settings = load_settings()
    log_to_stderr(settings.log_level)
    return interruptible_services(runner_config(settings), redactor=redactor())


@contextmanager
def provisioning(workflows: Path, declarations: Path, *, prune: bool) -> Iterator[Provisioning]:
    """The work of provisioning, as the admin whom the settings name."""
    from orchestrator.provision.service import load_workflows, open_provisioning
    from orchestrator.secret import Secret
    from orchestrator.settings import load_settings

    settings = load_settings()
    from orchestrator.configured.vault_login import admin_config

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
    from orchestrator.configured.vault_login import admin_config
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
    elif level == "debug":
        logging.getLogger("asyncio").setLevel(logging.INFO)  # which selector it uses tells nobody anything
