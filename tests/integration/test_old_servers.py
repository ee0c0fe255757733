"""What needs PostgreSQL 16 says so at the server that is too old for it; the rest works there.

The server is a real one of today that tells another version.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

import psycopg
import pytest
from bench import Bench
from database_servers import listening, pump

from orchestrator.errors import ExitCode, ProvisionError, Unreachable, UsageError
from orchestrator.grants.credential import Credential
from orchestrator.grants.scope import Scope
from orchestrator.inference.workflows import open_catalogs
from orchestrator.proof.examine import Examination, examine_database
from orchestrator.secret import Secret


@dataclass
class Older:
    """What lies between a client and a server, and changes the version that the server tells (two digits)."""

    port: int
    version: bytes

    def __call__(self, connection: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", self.port)) as server:
            there = threading.Thread(target=pump, args=[connection, server], daemon=True)
            there.start()
            told = b"server_version\0"
            with suppress(OSError):
                while data := server.recv(1 << 20):
                    if told in data:
                        at = data.index(told) + len(told)
                        data = data[:at] + self.version + data[at + len(self.version) :]
                    connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
            there.join(10)


@pytest.fixture(params=[13, 15])
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def old(bench: Bench, version: int) -> Iterator[Bench]:
    """The bench, whose database says that it is of this version."""
    port = psycopg.conninfo.conninfo_to_dict(bench.info.support_dsn.reveal())["port"]
    with listening(Older(int(str(port)), str(version).encode())) as there:
        dsn = psycopg.conninfo.make_conninfo(bench.info.support_dsn.reveal(), port=there)
        with psycopg.connect(dsn) as session:
            assert session.info.server_version // 10000 == version
        info = replace(bench.info, support_dsn=Secret(dsn), support_endpoint=f"postgresql://127.0.0.1:{there}/support")
        yield replace(bench, info=info)


def test_provisioning_changes_nothing_and_says_why(old: Bench, version: int) -> None:
    with pytest.raises(ProvisionError, match=f"`support` is PostgreSQL {version}") as caught, old.provisioning():
        pass
    assert "16" in str(caught.value.hint)


def test_inference_says_why_it_cannot(old: Bench, version: int) -> None:
    with (
        pytest.raises(UsageError, match=f"`support` is PostgreSQL {version}") as caught,
        open_catalogs({"support": old.info.support_dsn}) as catalogs,
    ):
        catalogs.of("support")
    assert "16" in str(caught.value.hint)


def test_no_proof_is_made(old: Bench, version: int) -> None:
    admin = psycopg.conninfo.conninfo_to_dict(old.info.support_dsn.reveal())
    fields = {"username": Secret(str(admin["user"])), "password": Secret(str(admin["password"]))}
    credential = Credential("db", "database", 60, connection="support", fields=fields)
    scope = Scope("db", "database", "database/creds/x", 60, "support", "x")
    with pytest.raises(Unreachable, match=f"the server is PostgreSQL {version}") as caught:
        examine_database("read", scope, "x", credential, old.info.support_endpoint, Examination())
    assert "16" in str(caught.value.hint)


def test_a_step_runs_with_a_role_that_is_maintained_by_hand(old: Bench) -> None:
    text = """
version: 1
name: reads_an_old_server
agent: tester
steps:
  read:
    action: postgres.query
    grants: { db: { kind: database, connection: support, role: feedback-read } }
    with: { sql: "SELECT count(*) AS n FROM customer_feedback", grant: db }
"""
    endpoints = {**old.provisioned.endpoints, "support": old.info.support_endpoint}
    assert old.run(text, endpoints=endpoints).exit_code is ExitCode.DONE
