"""Real servers for tests: one stack for all tests of a process, and servers of a test's own to disturb.

With ORCHESTRATOR_TEST_STACK=containers the shared stack's Vault and PostgreSQL come from container
images instead (see `stack_containers.py`); servers that a test disturbs are always embedded ones.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from orchestrator.devstack.openbao import OpenBao
from orchestrator.devstack.postgres import Postgres
from orchestrator.devstack.stack import DevStack, StackInfo


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackInfo]:
    """A running stack, shared by the tests of one process: leave it as you found it."""
    directory = tmp_path_factory.mktemp("stack")
    if os.environ.get("ORCHESTRATOR_TEST_STACK") == "containers":
        from stack_containers import container_stack

        with container_stack(directory) as info:
            yield info
    else:
        with DevStack(directory) as info:
            yield info


@pytest.fixture
def openbao_server(tmp_path: Path) -> Iterator[Callable[..., OpenBao]]:
    """Starts OpenBao servers of the test's own: `openbao_server(persistent=True)`."""
    with ExitStack() as servers:

        def start(*, persistent: bool = False) -> OpenBao:
            server = OpenBao(tmp_path / f"openbao-{len(list(tmp_path.iterdir()))}", persistent=persistent)
            return servers.enter_context(server)

        yield start


@pytest.fixture
def postgres_server(tmp_path: Path) -> Iterator[Callable[..., Postgres]]:
    """Starts PostgreSQL servers of the test's own: `postgres_server()`."""
    with ExitStack() as servers:

        def start(*, durable: bool = False) -> Postgres:
            server = Postgres(tmp_path / f"postgres-{len(list(tmp_path.iterdir()))}", durable=durable)
            return servers.enter_context(server)

        yield start
