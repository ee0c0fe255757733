"""The whole embedded stack: Vault-compatible server, PostgreSQL with sample data, sample HTTP services.

What an orchestrator needs besides (its login, its Vault policies, its database roles) is not here:
that is installed afterwards by provisioning, as in production.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import ClassVar

from orchestrator.devstack.admin import PostgresAdmin, VaultAdmin
from orchestrator.devstack.openbao import OpenBao
from orchestrator.devstack.postgres import Postgres
from orchestrator.devstack.sample_services import SampleServices, SlackBot
from orchestrator.devstack.sampledb import DATABASE, create_sample_database
from orchestrator.samples.place import samples
from orchestrator.secret import Secret

TOKEN_KEY = "orchestrator-token"  # noqa: S105 -- the name of a key
AUDIENCE = "translation-api"

_JWKS_POLICY = f'path "transit/keys/{TOKEN_KEY}" {{ capabilities = ["read"] }}'


@dataclass(frozen=True, slots=True)
class StackInfo:
    """Where everything is. What is secret here are `Secret`s; the endpoints hold no credentials.

    `admin_token` opens `/_admin/...` of the sample services in the header `X-Admin-Token`.
    """

    directory: Path
    vault_address: str
    root_token: Secret
    postgres_host: str
    postgres_port: int
    admin_dsn: Secret
    support_endpoint: str
    support_dsn: Secret
    translation_url: str
    crm_url: str
    issuer_url: str
    slack_url: str
    slack_token: Secret
    admin_token: Secret

    @property
    def endpoints(self) -> dict[str, str]:
        """The endpoints of the sample workflows, by name."""
        return {
            "support": self.support_endpoint,
            "translation": self.translation_url,
            "crm": self.crm_url,
            "slack": f"{self.slack_url}/api/",
        }

    def environment(self) -> dict[str, str]:
        """The variables that point the orchestrator at this stack, without any credentials."""
        return {
            "VAULT_ADDR": self.vault_address,
            "ORCHESTRATOR_TOKEN_ISSUER": self.issuer_url,
            **{f"ORCHESTRATOR_ENDPOINTS__{name.upper()}": url for name, url in self.endpoints.items()},
        }


@contextmanager
def furnished(vault: VaultAdmin, postgres: PostgresAdmin, directory: Path) -> Iterator[StackInfo]:
    """Fill two empty servers with the sample data and secrets, and run the sample services beside them."""
    messages = samples() / "workflows" / "data" / "customer_feedback.csv"
    create_sample_database(postgres.dsn(), postgres.dsn(DATABASE), messages)
    slack_token = Secret(f"xoxb-{secrets.randbelow(10**12):012d}-{secrets.token_hex(12)}")
    admin_token = Secret(secrets.token_hex(16))
    _install_keys_and_secrets(vault, slack_token)
    services = SampleServices(
        directory=directory,
        vault_address=vault.address,
        vault_token=_jwks_reader(vault),
        key=TOKEN_KEY,
        audience=AUDIENCE,
        admin_token=admin_token,
        bots=(SlackBot("support-bot", slack_token),),
    )
    with services:
        yield StackInfo(
            directory=directory,
            vault_address=vault.address,
            root_token=vault.root_token,
            postgres_host=postgres.host,
            postgres_port=postgres.port,
            admin_dsn=postgres.dsn(),
            support_endpoint=postgres.endpoint(DATABASE),
            support_dsn=postgres.dsn(DATABASE),
            translation_url=services.url("translation"),
            crm_url=services.url("crm"),
            issuer_url=services.url("issuer"),
            slack_url=services.url("slack"),
            slack_token=slack_token,
            admin_token=admin_token,
        )


class DevStack:
    """Starts everything below `directory` and stops it again; a context manager that gives a `StackInfo`.

    `durable=False` makes PostgreSQL skip fsync, for tests. `persistent` gives OpenBao storage that
    survives a restart. The servers are at `openbao` and `postgres`, for whoever wants to disturb them.
    """

    VAULT: ClassVar[type[OpenBao]] = OpenBao
    """What is started as Vault."""

    def __init__(self, directory: Path, *, durable: bool = False, persistent: bool = False) -> None:
        self.directory = directory
        self.openbao = self.VAULT(directory / "openbao", persistent=persistent)
        self.postgres = Postgres(directory / "postgres", durable=durable)
        self._cleanup = ExitStack()

    def __enter__(self) -> StackInfo:
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        with ExitStack() as undo:
            undo.enter_context(self.openbao)
            undo.enter_context(self.postgres)
            info = undo.enter_context(furnished(self.openbao.admin, self.postgres.admin, self.directory))
            self._cleanup = undo.pop_all()
        return info

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cleanup.close()


def _install_keys_and_secrets(vault: VaultAdmin, slack_token: Secret) -> None:
    """What an admin has in Vault before the orchestrator comes: the bot token, and the signing key."""
    vault.request("POST", "secret/data/slack/support-bot", {"data": {"token": slack_token.reveal()}})
    vault.request("POST", "sys/mounts/transit", {"type": "transit"})
    vault.request("POST", f"transit/keys/{TOKEN_KEY}", {"type": "ecdsa-p256"})


def _jwks_reader(vault: VaultAdmin) -> Secret:
    """A token that may read the public part of the signing key, and nothing else."""
    vault.request("PUT", "sys/policies/acl/jwks-reader", {"policy": _JWKS_POLICY})
    wish = {"policies": ["jwks-reader"], "no_default_policy": True, "ttl": "768h"}
    answer = vault.request("POST", "auth/token/create-orphan", wish)
    return Secret(answer["auth"]["client_token"])
