"""The whole embedded stack: Vault-compatible server, PostgreSQL with sample data, sample HTTP services."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from orchestrator.devstack.openbao import OpenBao
from orchestrator.devstack.postgres import Postgres
from orchestrator.devstack.process import die_with_parent, free_port, stop
from orchestrator.devstack.sampledb import DATABASE, create_sample_database
from orchestrator.errors import Unreachable, UsageError
from orchestrator.secret import Secret

TOKEN_KEY = "orchestrator-token"  # noqa: S105 -- the name of a key
AUDIENCE = "translation-api"
SAMPLE_DATA = Path(__file__).parents[2] / "workflows" / "data" / "customer_feedback.csv"

_JWKS_POLICY = f'path "transit/keys/{TOKEN_KEY}" {{ capabilities = ["read"] }}'


@dataclass(frozen=True, slots=True)
class StackInfo:
    """Where everything is. What is secret here are `Secret`s; the endpoints hold no credentials."""

    directory: Path
    vault_address: str
    root_token: Secret
    support_endpoint: str
    support_dsn: Secret
    translation_url: str
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
            "slack": f"{self.slack_url}/api/",
        }

    def environment(self) -> dict[str, str]:
        """The variables that point the orchestrator at this stack, without any credentials."""
        return {
            "ORCHESTRATOR_VAULT_ADDR": self.vault_address,
            "ORCHESTRATOR_TOKEN_ISSUER": self.issuer_url,
            **{f"ORCHESTRATOR_ENDPOINTS__{name.upper()}": url for name, url in self.endpoints.items()},
        }


class DevStack:
    """Starts everything below `directory` and stops it again; a context manager that gives a `StackInfo`.

    `durable=False` makes PostgreSQL skip fsync, for tests. `persistent` gives OpenBao storage that
    survives a restart. The servers are at `openbao` and `postgres`, for whoever wants to disturb them.
    """

    def __init__(self, directory: Path, *, durable: bool = False, persistent: bool = False) -> None:
        if not SAMPLE_DATA.exists():
            raise UsageError(f"the sample data {SAMPLE_DATA} is missing", hint="run from a checkout of the project")
        self.directory = directory
        self.openbao = OpenBao(directory / "openbao", persistent=persistent)
        self.postgres = Postgres(directory / "postgres", durable=durable)
        self._services: subprocess.Popen[bytes] | None = None
        self._cleanup = ExitStack()

    def __enter__(self) -> StackInfo:
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o711)
        with ExitStack() as undo:
            undo.enter_context(self.openbao)
            undo.enter_context(self.postgres)
            create_sample_database(self.postgres.dsn(), self.postgres.dsn(DATABASE), SAMPLE_DATA)
            info = self._info()
            self._put_secrets(info)
            undo.callback(self._stop_services)
            self._start_services(info)
            self._cleanup = undo.pop_all()
        return info

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cleanup.close()

    def _info(self) -> StackInfo:
        return StackInfo(
            directory=self.directory,
            vault_address=self.openbao.address,
            root_token=self.openbao.root_token,
            support_endpoint=self.postgres.endpoint(DATABASE),
            support_dsn=self.postgres.dsn(DATABASE),
            translation_url=f"http://127.0.0.1:{free_port()}",
            issuer_url=f"http://127.0.0.1:{free_port()}",
            slack_url=f"http://127.0.0.1:{free_port()}",
            slack_token=Secret(f"xoxb-{secrets.randbelow(10**12):012d}-{secrets.token_hex(12)}"),
            admin_token=Secret(secrets.token_hex(16)),
        )

    def _put_secrets(self, info: StackInfo) -> None:
        """What an admin has in Vault before the orchestrator comes: the bot token, and the signing key."""
        bao = self.openbao
        bao.request("POST", "secret/data/slack/support-bot", {"data": {"token": info.slack_token.reveal()}})
        bao.request("POST", "sys/mounts/transit", {"type": "transit"})
        bao.request("POST", f"transit/keys/{TOKEN_KEY}", {"type": "ecdsa-p256"})
        bao.request("PUT", "sys/policies/acl/jwks-reader", {"policy": _JWKS_POLICY})

    def _start_services(self, info: StackInfo) -> None:
        token = self.openbao.request(
            "POST", "auth/token/create-orphan", {"policies": ["jwks-reader"], "no_default_policy": True, "ttl": "768h"}
        )
        config: dict[str, Any] = {
            "issuer_url": info.issuer_url,
            "issuer_port": _port(info.issuer_url),
            "translation_port": _port(info.translation_url),
            "slack_port": _port(info.slack_url),
            "audience": AUDIENCE,
            "vault_address": info.vault_address,
            "vault_token": token["auth"]["client_token"],
            "key": TOKEN_KEY,
            "admin_token": info.admin_token.reveal(),
            "slack_bots": {
                info.slack_token.reveal(): {"name": "support-bot", "scopes": ["chat:write"], "channels": ["#support"]}
            },
        }
        with (self.directory / "services.log").open("ab") as log:
            self._services = subprocess.Popen(
                [sys.executable, "-m", "orchestrator.devstack.services"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        assert self._services.stdin is not None
        assert self._services.stdout is not None
        self._services.stdin.write(json.dumps(config).encode() + b"\n")
        self._services.stdin.close()
        if self._services.stdout.readline() != b"ready\n":
            log_text = (self.directory / "services.log").read_text(errors="replace")
            raise Unreachable(f"the sample services did not start:\n{log_text[-1000:]}")

    def _stop_services(self) -> None:
        if self._services is not None:
            stop(self._services)
            assert self._services.stdout is not None
            self._services.stdout.close()
            self._services = None


def _port(url: str) -> int:
    return int(url.rpartition(":")[2])
