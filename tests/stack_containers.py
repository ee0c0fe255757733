"""The shared stack on container images: what the embedded servers stand for, from their makers.

Needs a Docker engine that can pull, on Linux: Vault shares the host's network, so that it reaches
PostgreSQL at the same address as everybody else. Sample data, secrets and services are the same.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
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


def _vault_container(admin: VaultAdmin) -> DockerContainer:
    return (
        DockerContainer(VAULT_IMAGE)
        .with_env("VAULT_DEV_ROOT_TOKEN_ID", admin.root_token.reveal())
        .with_env("VAULT_DEV_LISTEN_ADDRESS", admin.address.removeprefix("http://"))
        .with_env("SKIP_SETCAP", "1")
        .with_kwargs(network_mode="host")
    )


def _wait_for(vault: VaultAdmin) -> None:
    """Until the KV engine answers. Raises TimeoutError."""
    until = time.monotonic() + _READY_SECONDS
    while time.monotonic() < until:
        try:
            vault.request("GET", "secret/config")
        except httpx.HTTPError:
            time.sleep(0.1)
        else:
            return
    raise TimeoutError(f"{VAULT_IMAGE} did not become ready on {vault.address}")


@contextmanager
def container_stack(directory: Path) -> Iterator[StackInfo]:
    """Start both containers, fill them, and run the sample services beside them."""
    vault = VaultAdmin(f"http://127.0.0.1:{free_port()}", Secret("root-" + secrets.token_hex(16)))
    password = Secret(secrets.token_urlsafe(24))
    database = PostgresContainer(POSTGRES_IMAGE, username="postgres", password=password.reveal(), dbname="postgres")
    with _vault_container(vault), database:
        _wait_for(vault)
        postgres = PostgresAdmin("127.0.0.1", int(database.get_exposed_port(5432)), password)
        with furnished(vault, postgres, directory) as info:
            yield info
