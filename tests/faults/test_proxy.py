"""The proxy itself, between real clients and real servers: unseen without faults, and with them it does as told."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from http_messages import answer, read_message
from hypothesis import given
from hypothesis import strategies as st
from proxy import Answer, CutAfterForwarding, DropAnswer, Garbage, GarbledAnswer, Proxy, Way
from waiting import wait_for

from orchestrator.devstack.stack import StackInfo


@dataclass
class Echo:
    """A small HTTP server: what was asked of it, in order, and where it is."""

    port: int = 0
    seen: list[str] = field(default_factory=list)
    arrived: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def echo() -> Iterator[Echo]:
    """Answers with the request's body; `/chunked` in chunks, `/empty` with 204, `/wait` when it is told to go on."""
    echo = Echo()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            echo.seen.append(f"{self.command} {self.path}")
            echo.arrived.set()
            if self.path == "/wait":
                echo.go_on.wait(10)
            if self.path == "/empty":
                self.send_response(204)
                self.end_headers()
                return
            self.send_response(200)
            if self.path == "/chunked":
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                self.wfile.write(b"".join(b"%x\r\n%s\r\n" % (1, body[i : i + 1]) for i in range(len(body))))
                self.wfile.write(b"0\r\n\r\n")
                return
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = do_POST  # noqa: N815 -- the names that http.server looks for

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

        def handle(self) -> None:
            try:
                super().handle()
            except OSError:
                pass  # the proxy cut the connection, as the test wanted

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        echo.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield echo
        echo.go_on.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    with Proxy(("127.0.0.1", echo.port), http=True) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: Proxy) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=proxy.address, trust_env=False, timeout=10) as client:
        yield client


def test_without_faults_every_kind_of_answer_passes_on_one_connection(proxy: Proxy, client: httpx.Client) -> None:
    assert client.post("/plain", content=b"x" * 200_000).content == b"x" * 200_000
    assert client.post("/chunked", content=b"abc").content == b"abc"
    assert client.post("/empty").status_code == 204
    assert client.head("/plain").status_code == 200
    assert client.get("/plain").content == b""
    assert proxy.accepted == 1
    assert [line.split()[1] for line in proxy.requests] == ["/plain", "/chunked", "/empty", "/plain", "/plain"]


def test_an_answer_of_its_own_is_given_so_often_and_to_whom_it_was_asked(
    proxy: Proxy, client: httpx.Client, echo: Echo
) -> None:
    proxy.fail(Answer(429, headers={"Retry-After": "1"}), times=2, when=lambda line: "/busy" in line)
    assert client.get("/free").status_code == 200
    first, second, third = (client.get("/busy") for _ in range(3))
    assert (first.status_code, first.headers["Retry-After"]) == (429, "1")
    assert (second.status_code, third.status_code) == (429, 200)
    assert echo.seen == ["GET /free", "GET /busy"], "a request that is answered by the proxy is not forwarded"
    assert proxy.unused == 0


@pytest.mark.parametrize("status", [500, 503])
def test_a_server_error_is_answered(proxy: Proxy, client: httpx.Client, status: int) -> None:
    proxy.fail(Answer(status))
    assert client.get("/x").status_code == status
    assert client.get("/x").status_code == 200


def test_garbage_is_answered_without_forwarding(proxy: Proxy, client: httpx.Client, echo: Echo) -> None:
    proxy.fail(Garbage())
    with pytest.raises(httpx.RemoteProtocolError):
        client.get("/x")
    assert echo.seen == []
    assert client.get("/x").status_code == 200


def test_an_answer_can_be_garbled_after_the_work_was_done(proxy: Proxy, client: httpx.Client, echo: Echo) -> None:
    proxy.fail(GarbledAnswer())
    assert client.post("/x", content=b"body").content == b"this is not JSON"
    assert echo.seen == ["POST /x"]


def test_an_answer_is_dropped_after_the_server_did_its_work(proxy: Proxy, client: httpx.Client, echo: Echo) -> None:
    proxy.fail(DropAnswer())
    with pytest.raises(httpx.RemoteProtocolError):
        client.get("/x")
    assert echo.seen == ["GET /x"]
    assert client.get("/x").status_code == 200


def test_an_answer_that_is_dropped_in_silence_leaves_the_client_waiting(proxy: Proxy, echo: Echo) -> None:
    proxy.fail(DropAnswer(close=False))
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(f"{proxy.address}/x", timeout=0.3, trust_env=False)
    assert echo.seen == ["GET /x"]


def test_a_cut_after_forwarding_comes_before_the_answer(proxy: Proxy, client: httpx.Client, echo: Echo) -> None:
    proxy.fail(CutAfterForwarding(when=lambda: echo.arrived.wait(10)))
    with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
        client.get("/wait")
    assert echo.seen == ["GET /wait"]
    assert not echo.go_on.is_set(), "the server had not answered yet"


def test_all_connections_are_cut_at_once(proxy: Proxy, echo: Echo) -> None:
    errors: list[Exception] = []

    def ask() -> None:
        try:
            httpx.get(f"{proxy.address}/wait", trust_env=False, timeout=10)
        except httpx.TransportError as error:
            errors.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    assert echo.arrived.wait(10)
    assert proxy.cut() == 1
    asking.join()
    assert [type(error) for error in errors] == [httpx.ReadError]


def test_new_connections_are_refused_until_they_are_accepted_again(proxy: Proxy, client: httpx.Client) -> None:
    assert client.get("/x").status_code == 200
    proxy.refuse()
    assert client.get("/x").status_code == 200, "a connection that is open goes on"
    with pytest.raises(httpx.ConnectError):
        httpx.get(proxy.address, trust_env=False)
    proxy.accept()
    assert httpx.get(proxy.address, trust_env=False).status_code == 200


def test_refusing_ends_by_itself_when_it_was_for_a_time(proxy: Proxy) -> None:
    with httpx.Client(trust_env=False) as ready:  # making one takes longer than asking
        proxy.refuse(seconds=0.7)
        with pytest.raises(httpx.ConnectError):
            ready.get(proxy.address)
    again = httpx.HTTPTransport(retries=10)
    with httpx.Client(transport=again) as patient:
        assert patient.get(proxy.address).status_code == 200


def test_the_next_connections_hear_nothing_and_the_one_after_them_does(proxy: Proxy, echo: Echo) -> None:
    proxy.swallow(1)
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(f"{proxy.address}/x", timeout=0.3, trust_env=False)
    assert httpx.get(f"{proxy.address}/x", timeout=10, trust_env=False).status_code == 200
    assert echo.seen == ["GET /x", "GET /x"]


@pytest.mark.parametrize("way", [{"to_server": 5.0}, {"to_client": 5.0}])
def test_a_delay_holds_back_one_direction(
    proxy: Proxy, client: httpx.Client, echo: Echo, way: dict[str, float]
) -> None:
    proxy.delay(**way)
    with pytest.raises(httpx.ReadTimeout):
        client.get("/x", timeout=0.3)
    assert echo.seen == ([] if "to_server" in way else ["GET /x"])
    proxy.heal()
    assert httpx.get(f"{proxy.address}/x", trust_env=False).status_code == 200


def test_a_direction_is_closed_while_the_other_stays_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as opened:
        proxy = opened.enter_context(Proxy(("127.0.0.1", listener.getsockname()[1])))
        client = opened.enter_context(socket.create_connection(("127.0.0.1", proxy.port), timeout=10))
        server, _ = listener.accept()
        opened.enter_context(server)
        server.settimeout(10)
        client.sendall(b"ping")
        assert server.recv(10) == b"ping"
        proxy.half_close(Way.TO_SERVER)
        assert server.recv(10) == b"", "the server sees the end"
        server.sendall(b"pong")
        assert client.recv(10) == b"pong", "and can still answer"


def test_a_server_that_is_not_there_looks_like_a_cut_connection(echo: Echo) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with Proxy(("127.0.0.1", port), http=True) as proxy, pytest.raises(httpx.TransportError):
        httpx.get(proxy.address, trust_env=False)


def test_a_unix_socket_is_forwarded_to(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with (
            Proxy(path) as proxy,
            socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as client,
            listener.accept()[0] as server,
        ):
            client.sendall(b"over TCP")
            assert server.recv(20) == b"over TCP"


def test_nothing_is_left_of_it_when_it_ends() -> None:
    before = threading.active_count()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with Proxy(("127.0.0.1", listener.getsockname()[1])) as proxy:
            client = socket.create_connection(("127.0.0.1", proxy.port), timeout=10)
            server, _ = listener.accept()
        with client, server, pytest.raises(ConnectionResetError):
            client.recv(1)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", proxy.port), timeout=10)
    assert threading.active_count() == before


@pytest.fixture
def through(stack: StackInfo) -> Iterator[tuple[Proxy, Callable[[], psycopg.Connection[Any]]]]:
    """A proxy before the stack's PostgreSQL, and how to connect through it."""
    with Proxy((stack.postgres_host, stack.postgres_port)) as proxy:

        def connect() -> psycopg.Connection[Any]:
            return psycopg.connect(stack.support_dsn.reveal(), port=proxy.port, autocommit=True, connect_timeout=10)

        yield proxy, connect


def test_postgresql_is_reached_through_it(through: tuple[Proxy, Callable[[], psycopg.Connection[Any]]]) -> None:
    _, connect = through
    with connect() as session:
        assert session.execute("SELECT count(*) FROM customer_feedback").fetchone() == (1974,)


def test_a_cut_ends_a_session_of_postgresql(through: tuple[Proxy, Callable[[], psycopg.Connection[Any]]]) -> None:
    proxy, connect = through
    session = connect()
    assert proxy.cut() == 1
    with pytest.raises(psycopg.OperationalError):
        session.execute("SELECT 1")
    session.close()


@pytest.mark.parametrize("forwarded", [True, False])
def test_a_statement_is_cut_off_before_or_after_it_was_done(
    stack: StackInfo, through: tuple[Proxy, Callable[[], psycopg.Connection[Any]]], forwarded: bool
) -> None:
    proxy, connect = through
    proxy.cut_at(b"CREATE ROLE proxy_test", forwarded=forwarded)
    session = connect()
    session.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError):
        session.execute("CREATE ROLE proxy_test")
    session.close()
    with psycopg.connect(stack.support_dsn.reveal(), autocommit=True) as direct:
        found = direct.execute("SELECT count(*) FROM pg_roles WHERE rolname = 'proxy_test'").fetchone()
        direct.execute("DROP ROLE IF EXISTS proxy_test")
    assert found == (int(forwarded),)
    assert proxy.unused == 0


@given(st.lists(st.tuples(st.sampled_from([200, 204, 500]), st.binary(max_size=50)), max_size=5), st.integers(1, 7))
def test_messages_are_told_apart_however_the_bytes_arrive(messages: list[tuple[int, bytes]], piece: int) -> None:
    sent = [answer(status, b"" if status == 204 else body) for status, body in messages]

    async def go() -> list[bytes]:
        reader = asyncio.StreamReader()
        data = b"".join(sent)
        for start in range(0, len(data), piece):
            reader.feed_data(data[start : start + piece])
        reader.feed_eof()
        found = []
        while (message := await read_message(reader)) is not None:
            found.append(message.raw)
        return found

    assert asyncio.run(go()) == sent


def test_a_statement_is_done_and_never_answered(
    stack: StackInfo, through: tuple[Proxy, Callable[[], psycopg.Connection[Any]]]
) -> None:
    proxy, connect = through
    proxy.silence_at(b"CREATE ROLE proxy_test")
    session = connect()
    session.execute("SELECT 1")
    ended: list[Exception] = []

    def ask() -> None:
        try:
            session.execute("CREATE ROLE proxy_test")
        except psycopg.OperationalError as error:
            ended.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    with psycopg.connect(stack.support_dsn.reveal(), autocommit=True) as direct:
        there = "SELECT FROM pg_roles WHERE rolname = 'proxy_test'"
        wait_for(lambda: direct.execute(there).fetchone() is not None, "the statement")
        assert proxy.unused == 0
        asking.join(0.3)
        assert asking.is_alive()
        assert proxy.cut() == 1
        asking.join(10)
        direct.execute("DROP ROLE IF EXISTS proxy_test")
    assert len(ended) == 1
    session.close()
