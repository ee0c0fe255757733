"""The embedded servers: they come, go, crash and come back, and nothing of them stays behind."""

from __future__ import annotations

import json
import os
import pwd
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import psycopg
import pytest
from psycopg import sql

from orchestrator.devstack.openbao import OpenBao
from orchestrator.devstack.ports import free_port
from orchestrator.devstack.postgres import Postgres
from orchestrator.devstack.process import start, stop
from orchestrator.devstack.stack import DevStack
from orchestrator.errors import Unreachable, UsageError

_GONE_SECONDS = 60.0
_PASSWORD = "canary-9f31c7"


def _is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _wait_until_gone(pids: list[int]) -> list[int]:
    """Those of them that are still alive after a generous time."""
    until = time.monotonic() + _GONE_SECONDS
    while (alive := [pid for pid in pids if _is_alive(pid)]) and time.monotonic() < until:
        time.sleep(0.05)
    return alive


def _family(pid: int) -> list[int]:
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


def test_a_development_server_serves_at_once_and_writes_an_audit_log(
    openbao_server: Callable[..., OpenBao],
) -> None:
    bao = openbao_server()
    bao.request("POST", "secret/data/thing", {"data": {"word": _PASSWORD}})
    assert bao.request("GET", "secret/data/thing")["data"]["data"] == {"word": _PASSWORD}
    audit = bao.audit_log.read_text()
    assert '"path":"secret/data/thing"' in audit
    assert _PASSWORD not in audit


def test_the_root_token_is_in_no_process_argument_and_in_no_file(openbao_server: Callable[..., OpenBao]) -> None:
    bao = openbao_server()
    token = bao.root_token.reveal().encode()
    assert bao.request("GET", "auth/token/lookup-self")["data"]["policies"] == ["root"]
    assert token not in Path("/proc", str(bao.pid), "cmdline").read_bytes()
    until = time.monotonic() + _GONE_SECONDS
    while b"Development mode should" not in bao.log.read_bytes() and time.monotonic() < until:
        time.sleep(0.05)
    assert b"Unseal Key" not in bao.log.read_bytes()
    assert b"Development mode should NOT be used in production" in bao.log.read_bytes(), "the rest is kept"
    assert [path for path in bao.directory.rglob("*") if path.is_file() and token in path.read_bytes()] == []
    assert not list(bao.directory.rglob(".vault-token"))


@pytest.mark.parametrize("end", ["stop", "kill", "seal"])
def test_a_persistent_server_comes_back_on_its_port_with_all_it_knew(
    openbao_server: Callable[..., OpenBao], end: str
) -> None:
    bao = openbao_server(persistent=True)
    address = bao.address
    bao.request("POST", "secret/data/thing", {"data": {"word": "kept"}})
    if end == "seal":
        bao.seal()
        assert httpx.get(f"{address}/v1/sys/health", trust_env=False).status_code == 503
        bao.stop()
    else:
        getattr(bao, end)()
        with pytest.raises(httpx.ConnectError):
            bao.request("GET", "sys/health")
    bao.start()
    assert bao.address == address
    assert bao.request("GET", "secret/data/thing")["data"]["data"] == {"word": "kept"}


def test_the_key_that_unseals_is_readable_by_its_owner_only(openbao_server: Callable[..., OpenBao]) -> None:
    key = openbao_server(persistent=True).directory / "seal.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_a_server_whose_port_is_taken_says_so_with_its_log(tmp_path: Path) -> None:
    with OpenBao(tmp_path / "first") as first, pytest.raises(Unreachable, match="address already in use"):
        OpenBao(tmp_path / "second", port=first.port).__enter__()


@pytest.mark.parametrize("server", [OpenBao, Postgres])
def test_the_folder_of_another_server_is_refused(tmp_path: Path, server: type[OpenBao | Postgres]) -> None:
    (tmp_path / "raft").mkdir()
    (tmp_path / "pgdata").mkdir()
    with pytest.raises(UsageError, match="holds the data of another"):
        server(tmp_path).__enter__()


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_postgres_comes_back_on_its_port_with_what_was_committed(
    postgres_server: Callable[..., Postgres], end: str
) -> None:
    server = postgres_server()
    with psycopg.connect(server.dsn().reveal(), autocommit=True) as session:
        session.execute("CREATE TABLE thing AS SELECT 42 AS answer")
    port, family = server.port, _family(server.pid)
    getattr(server, end)()
    assert _wait_until_gone(family) == []
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(server.dsn().reveal())
    server.start()
    with psycopg.connect(server.dsn().reveal()) as session:
        assert session.execute("SELECT answer FROM thing").fetchall() == [(42,)]
    assert server.port == port


def test_postgres_wants_a_scram_password_over_tcp_and_over_its_socket(
    postgres_server: Callable[..., Postgres],
) -> None:
    server = postgres_server()
    assert server.socket_dir is not None
    for host in (server.host, str(server.socket_dir)):

        def connect(password: str, host: str = host) -> psycopg.Connection:
            return psycopg.connect(host=host, port=server.port, user="postgres", dbname="postgres", password=password)

        with pytest.raises(psycopg.OperationalError, match="password"):
            connect("wrong")
        with connect(server.password.reveal()) as session:
            stored = session.execute("SELECT rolpassword FROM pg_authid WHERE rolname = 'postgres'").fetchone()
        assert stored is not None
        assert stored[0].startswith("SCRAM-SHA-256$")


def test_postgres_needs_no_way_through_the_folders_above_its_own(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with Postgres(closed / "postgres", durable=False) as server:
        server.kill()
        server.start()
        assert server.socket_dir is not None
        assert (server.socket_dir / f".s.PGSQL.{server.port}").is_socket()
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


BEGIN_TOGETHER = """
import pwd, sys
from orchestrator.devstack import postgres_user

postgres_user._SYSTEM_USER = sys.argv[1]
print("ready", flush=True)
sys.stdin.readline()
user = postgres_user.server_user()
print(pwd.getpwnam(user).pw_uid if user else None, flush=True)
"""


def test_processes_that_need_the_servers_user_at_the_same_time_make_one() -> None:
    name = f"orc-test-{os.urandom(4).hex()}"
    beginning = [
        subprocess.Popen(
            [sys.executable, "-c", BEGIN_TOGETHER, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    try:
        for process in beginning:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
        for process in beginning:
            assert process.stdin
            process.stdin.write("\n")
            process.stdin.flush()
        told = {process.communicate(timeout=30)[0].strip() for process in beginning}
        assert told == {str(pwd.getpwnam(name).pw_uid) if os.geteuid() == 0 else "None"}
    finally:
        if os.geteuid() == 0:
            subprocess.run(["userdel", name], check=True)


def test_a_socket_path_that_is_too_long_is_done_without(tmp_path: Path) -> None:
    directory = tmp_path / ("long-" * 20)
    with Postgres(directory, durable=False) as server:
        assert server.socket_dir is None
        psycopg.connect(server.dsn().reveal()).close()


@pytest.mark.parametrize(
    "statement",
    [
        f"CREATE ROLE taken PASSWORD '{_PASSWORD}'",
        f"CREATE ROLE twice PASSWORD '{_PASSWORD}' PASSWORD '{_PASSWORD}'",
        f"CREATE ROLE broken PASSWORD '{_PASSWORD}",
        f"CREATE ROLE broken PASSWORD {_PASSWORD.replace('-', '_')}",
    ],
)
def test_a_password_never_lands_in_the_log_even_when_its_statement_fails(
    postgres_server: Callable[..., Postgres], statement: str
) -> None:
    server = postgres_server()
    with psycopg.connect(server.dsn().reveal(), autocommit=True) as session:
        session.execute(sql.SQL("CREATE ROLE taken PASSWORD {}").format(sql.Literal(_PASSWORD)))
        with pytest.raises(psycopg.Error):
            session.execute(statement.encode())
    server.stop()
    log = server.log.read_text()
    assert "database system is ready" in log
    assert "canary" not in log


def test_the_password_of_the_superuser_is_in_no_file(postgres_server: Callable[..., Postgres]) -> None:
    server = postgres_server()
    password = server.password.reveal().encode()
    server.stop()
    assert [path for path in server.directory.rglob("*") if path.is_file() and password in path.read_bytes()] == []


def test_a_stopped_stack_leaves_no_process_and_nothing_outside_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, scratch = tmp_path / "home", tmp_path / "scratch"
    home.mkdir()
    scratch.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("TMPDIR", str(scratch))
    stack = DevStack(tmp_path / "stack")
    already_there = set(psutil.Process().children())
    with stack as info:
        servers = [child.pid for child in psutil.Process().children() if child not in already_there]
        assert len(servers) == 3
        family = [pid for server in servers for pid in _family(server)]
        addresses = [info.vault_address, info.translation_url, info.crm_url, info.issuer_url, info.slack_url]
    assert _wait_until_gone(family) == []
    for address in addresses:
        with pytest.raises(httpx.ConnectError):
            httpx.get(address, trust_env=False)
    assert list(home.iterdir()) == []
    assert list(scratch.iterdir()) == []
    assert list((tmp_path / "stack" / "postgres").glob(".s.PGSQL*")) == []


_PARENT = """
import json, pathlib, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with SIGINT ignored
import psutil, psycopg
from orchestrator.devstack.stack import DevStack
with DevStack(pathlib.Path(sys.argv[1])) as info:
    print(json.dumps([[child.pid for child in psutil.Process().children(recursive=True)], info.postgres_port]))
    print(info.admin_dsn.reveal(), flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def parent(tmp_path: Path) -> Callable[[], subprocess.Popen[bytes]]:
    def launch() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", _PARENT, str(tmp_path / "stack")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            start_new_session=True,
        )

    return launch


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's own")
def test_every_server_dies_with_its_parent_even_by_sigkill_and_with_a_session_open(
    parent: Callable[[], subprocess.Popen[bytes]],
) -> None:
    with parent() as process:
        assert process.stdout is not None
        pids, _ = json.loads(process.stdout.readline())
        with psycopg.connect(process.stdout.readline().decode().strip()):
            assert len(pids) >= 3
            assert all(_is_alive(pid) for pid in pids)
            process.kill()
            process.wait()
            assert _wait_until_gone(pids) == []


def test_ctrl_c_in_the_terminal_reaches_no_server_before_its_parent(
    parent: Callable[[], subprocess.Popen[bytes]],
) -> None:
    with parent() as process:
        assert process.stdout is not None
        pids, _ = json.loads(process.stdout.readline())
        groups = {os.getpgid(pid) for pid in pids}
        assert process.pid not in groups
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(_GONE_SECONDS) != 0
        assert _wait_until_gone(pids) == []


def test_a_process_that_ignores_the_request_to_end_is_killed(tmp_path: Path) -> None:
    script = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); signal.pause()"
    process = start([sys.executable, "-c", script], log=tmp_path / "log", environment={}, piped=True)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    stop(process, seconds=0.1)
    assert process.returncode == -signal.SIGKILL


def test_a_server_hears_signals_that_its_parent_has_blocked(tmp_path: Path) -> None:
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        process = start([sys.executable, "-c", "import signal; signal.pause()"], log=tmp_path / "log", environment={})
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
    stop(process)
    assert process.returncode == -signal.SIGTERM


@pytest.mark.parametrize("server", [OpenBao, Postgres])
def test_a_folder_may_be_named_relative_to_where_we_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: type[OpenBao | Postgres]
) -> None:
    monkeypatch.chdir(tmp_path)
    with server(Path("here")) as running:
        assert running.pid
        assert (tmp_path / "here").is_dir()


def test_ports_are_below_those_of_outgoing_connections() -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert all(1024 < free_port() < lowest for _ in range(50))


_DRAW = """
import os, sys
from orchestrator.devstack.ports import free_port
ports = [free_port() for _ in range(20)]
child = os.fork()
if child == 0:
    ports = [free_port() for _ in range(20)]
os.write(1, (" ".join(map(str, ports)) + "\\n").encode())  # at once: both write to one pipe
sys.stdin.read()  # who has ended gives its ports back
if child:
    os.waitpid(child, 0)
"""


def test_no_two_processes_are_given_one_port_even_while_nobody_listens() -> None:
    """Else one's server could take the port on which that of another comes back."""
    drawing = [
        subprocess.Popen([sys.executable, "-c", _DRAW], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(8)
    ]
    try:
        drawn = [
            int(port) for each in drawing if each.stdout for line in range(2) for port in each.stdout.readline().split()
        ]
    finally:
        for each in drawing:
            each.communicate()
    assert len(drawn) == len(set(drawn)) == 8 * 2 * 20


def test_a_port_that_somebody_listens_on_is_passed_over() -> None:
    with socket.socket() as taken:
        port = free_port()
        taken.bind(("127.0.0.1", port))
        assert port not in {free_port() for _ in range(300)}


def test_where_all_ports_of_a_process_are_taken_it_is_said() -> None:
    code = """
import socket
from orchestrator.devstack.ports import free_port
held = []
while len(held) < 1000:
    held.append(socket.socket())
    held[-1].bind(("127.0.0.1", free_port()))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "of 127.0.0.1 is free" in ended.stderr
