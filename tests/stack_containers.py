"""The shared stack on container images: what the embedded servers stand for, from their makers.

Needs a Docker engine that can pull, on Linux: Vault shares the host's network, so that it reaches
PostgreSQL at the same address as everybody else. Sample data, secrets and services are the same.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from testcontainers.core.container import DockerContainer
from testcontainers.postgres import PostgresContainer

from orchestrator.devstack.admin import PostgresAdmin, VaultAdmin
from orchestrator.devstack.ports import free_port
from orchestrator.devstack.stack import StackInfo, furnished
from orchestrator.secret import Secret

VAULT_IMAGE = "hashicorp/vault:1.20"
POSTGRES_IMAGE = "postgres:18"
_READY_SECONDS = 60.0


@dataclass
class VaultInContainer(VaultAdmin):
    port: int = field(default_factory=free_port)
    root_token: Secret = field(default_factory=lambda: Secret("root-" + secrets.token_hex(16)))

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def container(self) -> DockerContainer:
        return (
            DockerContainer(VAULT_IMAGE)
            .with_env("VAULT_DEV_ROOT_TOKEN_ID", self.root_token.reveal())
            .with_env("VAULT_DEV_LISTEN_ADDRESS", f"127.0.0.1:{self.port}")
            .with_env("SKIP_SETCAP", "1")
            .with_kwargs(network_mode="host")
        )

    def wait(self) -> None:
        """Until the KV engine answers. Raises TimeoutError."""
        until = time.monotonic() + _READY_SECONDS
        while time.monotonic() < until:
            try:
                self.request("GET", "secret/config")
            except httpx.HTTPError:
                time.sleep(0.1)
            else:
                return
        raise TimeoutError(f"{VAULT_IMAGE} did not become ready on {self.address}")


@dataclass
class PostgresInContainer(PostgresAdmin):
    host: str
    port: int
    password: Secret


@contextmanager
def container_stack(directory: Path) -> Iterator[StackInfo]:
    """Start both containers, fill them, and run the sample services beside them."""
    vault = VaultInContainer()
    password = Secret(secrets.token_urlsafe(24))
    database = PostgresContainer(POSTGRES_IMAGE, username="postgres", password=password.reveal(), dbname="postgres")
    with vault.container(), database:
        vault.wait()
        postgres = PostgresInContainer("127.0.0.1", int(database.get_exposed_port(5432)), password)
        with furnished(vault, postgres, directory) as info:
            yield info
