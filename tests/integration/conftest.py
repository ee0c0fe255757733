"""Tests between our code and real servers."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from fork_server import ForkServer

from orchestrator.devstack.openbao import OpenBao
from orchestrator.devstack.postgres import Postgres


@pytest.fixture(scope="session", autouse=True)
def _watched(nothing_escapes: None, children: ForkServer) -> None:
    """Search what all of these tests write for secrets that escaped; commands can be forked in any of them."""


@pytest.fixture(scope="session")
def bare_servers(tmp_path_factory: pytest.TempPathFactory, nothing_escapes: None) -> Iterator[tuple[Postgres, OpenBao]]:
    """A PostgreSQL and an OpenBao in which nothing is provisioned, for `sites`: each leaves them so."""
    folder = tmp_path_factory.mktemp("bare")
    with Postgres(folder / "postgres", durable=False) as postgres, OpenBao(folder / "openbao") as openbao:
        with psycopg.connect(postgres.dsn().reveal()) as session:
            session.execute("REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC")
        yield postgres, openbao
