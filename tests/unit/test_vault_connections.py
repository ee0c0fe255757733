"""Connections that stay open: when they are used again, and what is known of a request that failed on one."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from orchestrator.errors import UsageError, VaultUnreachable
from orchestrator.secret import Secret
from orchestrator.vault.config import TokenAuth, VaultConfig
from orchestrator.vault.faults import Outcome, Unserved, VaultUnavailable
from orchestrator.vault.transport import Transport

OK = b'HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n{"a": 1}'
TOKEN = Secret("s.not-to-be-quoted")


@dataclass
class Peer:
    """A server that does with each connection what the test says: `serve` is called in a thread of the connection."""

    serve: Callable[[socket.socket, int], None]
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0

    def __post_init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.threads = [threading.Thread(target=self.accept)]
        self.threads[0].start()

    def accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            thread = threading.Thread(target=self.attend, args=(connection, self.connections))
            self.threads.append(thread)
            thread.start()

    def attend(self, connection: socket.socket, number: int) -> None:
        with connection:
            try:
                self.serve(connection, number)
            except OSError:
                pass

    def take(self, connection: socket.socket) -> bytes:
        """The next request of a connection; empty when the client has closed it."""
        data = b""
        while b"\r\n\r\n" not in data:
            piece = connection.recv(65536)
            if not piece:
                return b""
            data += piece
        head, _, body = data.partition(b"\r\n\r\n")
        length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        missing = int(length[0].split(b":")[1]) - len(body) if length else 0
        while missing > 0:
            piece = connection.recv(65536)
            data, missing = data + piece, missing - len(piece)
        self.requests.append(data)
        return data

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for thread in self.threads:
            thread.join()


@contextmanager
def peer(serve: Callable[[Peer, socket.socket, int], None]) -> Iterator[tuple[Peer, Transport]]:
    made = Peer(lambda connection, number: serve(made, connection, number))
    transport = Transport(config(made.address))
    try:
        yield made, transport
    finally:
        transport.close()
        made.close()


def config(address: str, **changes: Any) -> VaultConfig:
    return replace(VaultConfig(address, TokenAuth(TOKEN), connect_timeout=5.0, read_timeout=10.0), **changes)


def issue(transport: Transport) -> dict[str, Any]:
    return transport.request("post", "database/creds/r", token=TOKEN, payload={"a": 1})


def faithful(peer: Peer, connection: socket.socket, number: int) -> None:
    while peer.take(connection):
        connection.sendall(OK)


def wait_for(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)


def is_over(transport: Transport) -> bool:
    """Whether the connection that is kept has heard that the peer has closed it."""
    from orchestrator.vault.connections import _readable

    kept, _ = transport._connections._idle[0]
    return _readable(kept.sock)


def test_requests_one_after_another_take_one_connection() -> None:
    with peer(faithful) as (server, transport):
        assert [issue(transport) for _ in range(5)] == [{"a": 1}] * 5
        assert (server.connections, len(server.requests)) == (1, 5)


def test_requests_side_by_side_take_a_connection_each_and_leave_no_more_than_are_to_be_kept() -> None:
    together = threading.Barrier(4)

    def at_once(peer: Peer, connection: socket.socket, number: int) -> None:
        while peer.take(connection):
            together.wait(20)
            connection.sendall(OK)

    with peer(at_once) as (server, _), closing(Transport(config(server.address, connections=2))) as transport:
        threads = [threading.Thread(target=issue, args=(transport,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert server.connections == 4
        assert len(transport._connections._idle) == 2
        transport.close()
        assert len(transport._connections._idle) == 0


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_a_connection_that_was_closed_while_idle_costs_an_issuance_nothing(reset: bool) -> None:
    def once(peer: Peer, connection: socket.socket, number: int) -> None:
        peer.take(connection)
        connection.sendall(OK)
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with peer(once) as (server, transport):
        for _ in range(3):
            assert issue(transport) == {"a": 1}
            wait_for(lambda: is_over(transport))
        assert (server.connections, len(server.requests)) == (3, 3)


def test_what_a_server_says_unasked_ends_the_connection_and_answers_nothing() -> None:
    answered = threading.Event()

    def talkative(peer: Peer, connection: socket.socket, number: int) -> None:
        while peer.take(connection):
            connection.sendall(OK)
            answered.wait(20)
            connection.sendall(OK.replace(b"1}", b"2}"))

    with peer(talkative) as (server, transport):
        assert issue(transport) == {"a": 1}
        answered.set()
        wait_for(lambda: is_over(transport))
        assert issue(transport) == {"a": 1}
        assert server.connections == 2


def test_an_idle_connection_that_takes_not_one_byte_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing says beforehand that the connection is over: it is noticed by the send itself."""
    from orchestrator.vault import connections

    with peer(faithful) as (server, transport):
        issue(transport)
        kept, _ = transport._connections._idle[0]
        kept.sock.shutdown(socket.SHUT_WR)
        monkeypatch.setattr(connections, "_readable", lambda connected: False)
        assert issue(transport) == {"a": 1}
        assert (server.connections, len(server.requests)) == (2, 2)


def test_a_connection_that_ends_after_it_took_a_request_leaves_its_outcome_unknown() -> None:
    def second_is_cut(peer: Peer, connection: socket.socket, number: int) -> None:
        peer.take(connection)
        connection.sendall(OK)
        peer.take(connection)

    with peer(second_is_cut) as (server, transport):
        issue(transport)
        with pytest.raises(VaultUnavailable, match="gave no answer") as cut:
            issue(transport)
        assert cut.value.outcome is Outcome.UNKNOWN
        assert len(server.requests) == 2, "it was not simply sent again"


def test_a_connection_that_was_idle_for_long_is_not_trusted() -> None:
    with peer(faithful) as (server, transport):
        now = [0.0]
        transport._connections._clock = lambda: now[0]
        issue(transport)
        now[0] += 29
        issue(transport)
        assert server.connections == 1
        now[0] += 31
        issue(transport)
        assert server.connections == 2


def test_a_refused_connection_was_certainly_not_done() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with pytest.raises(VaultUnavailable, match="did not accept a connection") as refused:
        issue(Transport(config(f"http://127.0.0.1:{port}")))
    assert refused.value.outcome is Outcome.NOT_DONE


@pytest.mark.parametrize("silent", [False, True], ids=["cut", "silent"])
def test_a_handshake_that_does_not_come_to_its_end_was_certainly_not_done(silent: bool) -> None:
    over = threading.Event()

    def no_handshake(peer: Peer, connection: socket.socket, number: int) -> None:
        if silent:
            over.wait(20)

    with peer(no_handshake) as (server, _):
        address = server.address.replace("http:", "https:")
        with pytest.raises(VaultUnavailable, match="did not accept a connection") as cut:
            issue(Transport(config(address, connect_timeout=0.2)))
        over.set()
    assert cut.value.outcome is Outcome.NOT_DONE


def test_a_server_that_does_not_speak_tls_is_not_reached_and_not_asked_again() -> None:
    def plain(peer: Peer, connection: socket.socket, number: int) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\nClient sent an HTTPS request to an HTTP server.\n")
        connection.recv(65536)

    with peer(plain) as (server, _), pytest.raises(VaultUnreachable, match="does not speak TLS") as missed:
        issue(Transport(config(server.address.replace("http:", "https:"))))
    assert not isinstance(missed.value, Unserved)
    assert "plain http" in str(missed.value.hint)


@pytest.mark.parametrize(
    "address", ["127.0.0.1:8200", "ftp://vault", "http://", "http://vault:99999", "http://[::1", "vault", ""]
)
def test_an_address_that_is_none_is_said_to_be_none(address: str) -> None:
    with pytest.raises(UsageError, match="is not an address of a Vault server"):
        issue(Transport(config(address)))


def test_an_address_with_a_password_is_refused_without_quoting_it() -> None:
    with pytest.raises(UsageError) as refused:
        issue(Transport(config("http://admin:hunter2@127.0.0.1:1")))
    assert "hunter2" not in str(refused.value)


def test_an_address_may_have_a_path_and_a_path_may_have_any_letters() -> None:
    with peer(faithful) as (server, _):
        transport = Transport(config(f"{server.address}/behind/proxy/"))
        transport.request("get", "secret/data/a b#ü?list=true", token=TOKEN)
        transport.close()
        assert server.requests[0].startswith(b"GET /behind/proxy/v1/secret/data/a%20b%23%C3%BC?list=true HTTP/1.1\r\n")


@pytest.mark.parametrize("token", ["s.one\r\nX-Vault-Namespace: other", "s.tökén", "s.\x00"])
def test_a_token_that_no_header_can_carry_is_refused_without_quoting_it(token: str) -> None:
    with peer(faithful) as (server, transport):
        with pytest.raises(UsageError, match="X-Vault-Token") as refused:
            transport.request("get", "sys/x", token=Secret(token))
        assert "s." not in str(refused.value)
        assert server.connections == 0


def test_the_certificate_authority_that_is_not_there_is_named() -> None:
    from pathlib import Path

    with pytest.raises(UsageError, match=r"/nowhere/ca\.pem"):
        issue(Transport(config("https://127.0.0.1:1", ca_cert=Path("/nowhere/ca.pem"))))


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"[" * 1_000_000, id="nested-without-end"),
        pytest.param(b'{"a": ' + b"9" * 100_000 + b"}", id="a-number-of-100000-digits"),
        pytest.param(b"\xff\xfe\xfa", id="no-text"),
        pytest.param(b"[]", id="no-object"),
    ],
)
def test_a_body_that_is_not_what_vault_sends_leaves_the_outcome_unknown(body: bytes) -> None:
    def odd(peer: Peer, connection: socket.socket, number: int) -> None:
        peer.take(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    with peer(odd) as (_, transport), pytest.raises(VaultUnavailable, match="is not JSON") as odd_one:
        issue(transport)
    assert odd_one.value.outcome is Outcome.UNKNOWN


def test_a_silent_server_is_given_up_after_the_time_that_is_left() -> None:
    def silent(peer: Peer, connection: socket.socket, number: int) -> None:
        peer.take(connection)
        peer.take(connection)

    with peer(silent) as (_, transport), pytest.raises(VaultUnavailable, match=r"ReadTimeout") as given_up:
        transport.request("get", "sys/x", token=TOKEN, seconds=0.2)
    assert given_up.value.outcome is Outcome.UNKNOWN
    assert TOKEN.reveal() not in str(given_up.value)
