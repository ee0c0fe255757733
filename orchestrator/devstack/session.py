"""A provisioned stack for a person at a terminal: started, described, asked for the truth, stopped."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.devstack.provisioned import Provisioned, provision_stack
from orchestrator.devstack.stack import DevStack
from orchestrator.provision.vault.admin import VaultAdmin

if TYPE_CHECKING:
    from orchestrator.assembly import RunnerConfig
    from orchestrator.policy.types import PolicyEngine

LEDGER = "ledger.db"
"""The file with the ledger, in the folder that a stack is given."""


@contextmanager
def temporary_stack(root: Path, directory: Path | None) -> Iterator[Provisioned]:
    """Start and provision a stack; `root` is the checkout with `vault/` and `workflows/`.

    Without a directory it lives in a temporary one, which is removed at the end.
    """
    with ExitStack() as cleanup:
        temporary = cleanup.enter_context(tempfile.TemporaryDirectory(prefix="orchestrator-"))
        info = cleanup.enter_context(DevStack(directory.resolve() if directory else Path(temporary) / "stack"))
        yield provision_stack(info, declarations=root / "vault", workflows=root / "workflows")


def runtime_environment(provisioned: Provisioned, directory: Path) -> dict[str, str]:
    """The variables with which the orchestrator is the runtime of this stack. They hold its secret id."""
    return {
        **provisioned.info.environment(),
        "ORCHESTRATOR_AUTH_METHOD": "approle",
        "ORCHESTRATOR_AUTH_ROLE_ID": provisioned.role_id,
        "ORCHESTRATOR_AUTH_SECRET_ID": provisioned.secret_id.reveal(),
        "ORCHESTRATOR_LEDGER_URL": f"sqlite:///{directory / LEDGER}",
        "ORCHESTRATOR_POLICY_PATH": str(provisioned.policies.absolute()),
    }


def runner_config(provisioned: Provisioned, directory: Path, policy: PolicyEngine) -> RunnerConfig:
    """What those variables say, for a runner in this process, with policies that somebody has opened."""
    from orchestrator.assembly import RunnerConfig

    return RunnerConfig(
        vault=provisioned.vault_config(),
        ledger_url=f"sqlite:///{directory / LEDGER}",
        policy=policy,
        endpoints=provisioned.endpoints,
        token_issuer=provisioned.info.issuer_url,
    )


def admin_environment(provisioned: Provisioned) -> dict[str, str]:
    """The variables with which `orchestrator provision` is the admin of this stack."""
    info = provisioned.info
    return {
        **info.environment(),
        "ORCHESTRATOR_AUTH_METHOD": "token",
        "VAULT_TOKEN": info.root_token.reveal(),
        "ORCHESTRATOR_PROVISION_DATABASES__SUPPORT": info.support_dsn.reveal(),
    }


def write_environment(
    provisioned: Provisioned, directory: Path, more: Mapping[str, str] | None = None
) -> tuple[Path, Path]:
    """Files to be sourced by a shell, for the runtime and for the admin; readable by their owner only.

    `more` is what the runtime is told besides.
    """
    files = (directory / "runtime.env", directory / "admin.env")
    runtime = {**runtime_environment(provisioned, directory), **(more or {})}
    for file, variables in zip(files, (runtime, admin_environment(provisioned)), strict=True):
        text = "".join(f"{name}={shlex.quote(value)}\n" for name, value in variables.items())
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as opened:
            opened.write(text)
    return files


def run_command(arguments: Sequence[str], environment: Mapping[str, str], *, folder: Path) -> int:
    """Run our own command in this terminal, with nothing of the caller's settings, and return its exit code.

    A Ctrl-C reaches it as it reaches us; we wait until it has revoked what it holds.
    """
    command = [sys.executable, "-m", "orchestrator.cli", *arguments]
    before = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        with subprocess.Popen(command, env={**without_settings(), **environment}, cwd=folder) as process:  # noqa: S603 -- ours
            return process.wait()
    finally:
        signal.signal(signal.SIGINT, before)


def without_settings() -> dict[str, str]:
    """The environment of this process without anything that the orchestrator would take for a setting of its own."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("ORCHESTRATOR_", "VAULT_"))}


def run_until_stopped() -> None:
    """Wait for SIGINT or SIGTERM."""
    waited = {signal.SIGINT, signal.SIGTERM}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, waited)
    try:
        signal.sigwait(waited)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclass(frozen=True, slots=True)
class Left:
    """What the servers hold after a run."""

    logins: int
    leases: int
    translations: int
    messages: tuple[str, ...]
    tickets: Mapping[str, int]
    """Written at the CRM, by customer."""

    @property
    def clean(self) -> bool:
        """Whether nothing that was issued is left."""
        return self.logins == 0 and self.leases == 0

    def lines(self) -> list[str]:
        """The same for people."""
        tickets = [f"{count} ticket(s) of customer {customer}" for customer, count in self.tickets.items()]
        return [
            f"PostgreSQL   {self.logins} ephemeral logins (pg_roles), {self.translations} translations recorded",
            f"Vault        {self.leases} leases under database/",
            f"Slack        {len(self.messages)} message(s) in #support: {'; '.join(self.messages)}",
            f"CRM          {', '.join(tickets) or 'no ticket'}",
        ]


def what_is_left(provisioned: Provisioned) -> Left:
    """Ask each server, not the ledger."""
    import httpx
    import psycopg

    info = provisioned.info
    with psycopg.connect(info.support_dsn.reveal(), client_encoding="UTF8") as session:
        logins = session.execute("SELECT count(*) FROM pg_roles WHERE rolname LIKE 'orc\\_%'").fetchone()
        translations = session.execute("SELECT count(*) FROM feedback_translation").fetchone()
    with httpx.Client(headers={"X-Admin-Token": info.admin_token.reveal()}, trust_env=False) as http:
        slack, crm = (http.get(f"{url}/_admin/state").json() for url in (info.slack_url, info.crm_url))
    messages = tuple(message["text"] for message in slack["messages"] if message["channel"] == "#support")
    return Left(
        logins=int(logins[0]) if logins else -1,
        leases=len(database_leases(provisioned)),
        translations=int(translations[0]) if translations else -1,
        messages=messages,
        tickets={customer: len(tickets) for customer, tickets in crm["tickets"].items()},
    )


def database_leases(provisioned: Provisioned) -> list[str]:
    """Every lease that Vault holds under the database mount."""
    admin = VaultAdmin(provisioned.admin_config(), provisioned.info.root_token)
    found: list[str] = []
    pending = ["sys/leases/lookup/database/"]
    try:
        while pending:
            prefix = pending.pop()
            for key in admin.keys(prefix):
                (pending if key.endswith("/") else found).append(prefix + key)
    finally:
        admin.close()
    return found
