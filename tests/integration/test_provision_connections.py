"""What provisioning says where it cannot reach a database: the cause, what to do, and never the password."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread

import pytest
from database_kinds import KINDS
from database_servers import listening
from sites import Site, opened

from orchestrator.cli.main import main
from orchestrator.devstack.openbao import OpenBao
from orchestrator.devstack.ports import free_port
from orchestrator.devstack.postgres import Postgres
from orchestrator.errors import ExitCode, UsageError

KIND = KINDS["ordinary"]
TEXT = KIND.workflow()
PASSWORD = "p%20q-is-a-secret"
ADMIN, ENDPOINT = "ORCHESTRATOR_PROVISION_DATABASES__MATRIX", "ORCHESTRATOR_ENDPOINTS__MATRIX"


@pytest.fixture
def site(bare_servers: tuple[Postgres, OpenBao], tmp_path: Path) -> Iterator[Site]:
    with opened(KIND, bare_servers, tmp_path) as site:
        yield site


Said = tuple[int, str, str]


@pytest.fixture
def plan(site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[object]:
    """Exit code, message and hint of `provision plan` with another DSN."""
    command = site.command(monkeypatch, TEXT)

    def go(dsn: str | None, *, variable: str = ADMIN) -> Said:
        if dsn is None:
            monkeypatch.delenv(variable)
        else:
            monkeypatch.setenv(variable, dsn)
        code = main(["provision", "plan", "--json", *command])
        said = capsys.readouterr()
        for form in ("is-a-secret", "p%20q", "p q"):
            assert form not in said.out + said.err
        error = json.loads(said.out)["error"] if said.out else json.loads(said.err)["error"]
        return int(code), str(error["message"]), str(error.get("hint"))

    return go


def test_what_is_wrong_is_said(site: Site, plan: object) -> None:
    address = f"{site.server.host}:{site.server.port}"
    wrong = 'password authentication failed for user "{}"'
    for dsn, words, hint in (
        (f"postgresql://postgres:{PASSWORD}@{address}/matrix", wrong.format("postgres"), "is the password"),
        (f"postgresql://nobody:{PASSWORD}@{address}/matrix", wrong.format("nobody"), "is the password"),
        (f"postgresql://{PASSWORD}:{PASSWORD}@{address}/matrix", wrong.format("***"), "is the password"),
        (f"postgresql://postgres@{address}/matrix", "no password supplied", "name a password"),
        (site.server.dsn("nowhere").reveal(), 'database "nowhere" does not exist', "name a database"),
        (f"postgresql://u:{PASSWORD}@127.0.0.1:{free_port()}/matrix", "Connection refused", "is the server up"),
        (f"postgresql://u:{PASSWORD}@no-such-host.invalid/matrix", "no-such-host.invalid", "is the host"),
    ):
        code, message, told = plan(dsn)  # type: ignore[operator]
        assert code == ExitCode.UNREACHABLE
        assert message.startswith("the database `matrix` cannot be reached as its administrator: ")
        assert words in message
        assert hint in told
        assert ADMIN in told


GARBAGE = [
    f"postgresql//u:{PASSWORD}@host/db",
    f"mysql://u:{PASSWORD}@host/db",
    f"u:{PASSWORD}",
    f"host=a passwort={PASSWORD}",
    f"postgresql://u:a@{PASSWORD}@127.0.0.1/db",
    f"postgresql://u:a/{PASSWORD}@127.0.0.1/db",
    f"postgresql://u:{PASSWORD}/a@127.0.0.1/db",
    f"postgresql://u:a?b@{PASSWORD}@127.0.0.1/db",
]
"""Also passwords whose special characters make a host, a port or a database of a part of them."""


@pytest.mark.parametrize("dsn", GARBAGE)
def test_what_is_no_address_is_a_setting_to_be_mended(plan: object, dsn: str) -> None:
    code, message, hint = plan(dsn)  # type: ignore[operator]
    assert (code, ADMIN in message) == (UsageError.exit_code, True)
    assert "postgresql://USER:PASSWORD@HOST:PORT/DATABASE" in hint


@pytest.mark.parametrize("variable", [ADMIN, ENDPOINT])
def test_a_setting_that_is_not_there_is_named(plan: object, variable: str) -> None:
    code, message, hint = plan(None, variable=variable)  # type: ignore[operator]
    assert (code, "`matrix`" in message) == (UsageError.exit_code, True)
    assert f"set {variable}" in hint


def test_a_postgresql_that_is_too_old_is_refused_before_anything_is_done(site: Site, plan: object) -> None:
    with listening(lambda connection: _as_version(site.server.port, connection, b"15")) as port:
        code, message, hint = plan(site.dsn.reveal().replace(f":{site.server.port}/", f":{port}/"))  # type: ignore[operator]
    assert code == ExitCode.UNREACHABLE
    assert message == "the database `matrix` is PostgreSQL 15, and 16 is the oldest that can be provisioned"
    assert hint.startswith("nothing was changed; ")


def _as_version(port: int, connection: socket.socket, version: bytes) -> None:
    """The real server, which says that it is another version: nothing older is at hand."""
    with socket.create_connection((("127.0.0.1"), port)) as server:

        def back() -> None:
            with suppress(OSError):
                while data := server.recv(1 << 20):
                    begin, found, rest = data.partition(b"server_version\0")
                    connection.sendall(begin + found + (version + rest[2:] if found else b""))

        Thread(target=back, daemon=True).start()
        with suppress(OSError):
            while data := connection.recv(1 << 20):
                server.sendall(data)
