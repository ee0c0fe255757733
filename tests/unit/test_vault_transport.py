"""What a request to Vault carries, and what it does not: against a server that tries to leave something behind."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from orchestrator.secret import Secret
from orchestrator.vault.config import TokenAuth, VaultConfig
from orchestrator.vault.faults import VaultRefused, VaultUnavailable
from orchestrator.vault.transport import Transport


class Server:
    """Answers `{}` with a cookie; below `moved` with a redirect to itself, and below `broken` with half an answer."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                server.seen.append((self.command, self.path, dict(self.headers), body))
                self.send_response(302 if "moved" in self.path else 200)
                self.send_header("Location", "/v1/elsewhere")
                self.send_header("Set-Cookie", "session=of-another-step; Path=/")
                self.send_header("Content-Length", "200" if "broken" in self.path else "2")
                self.end_headers()
                self.wfile.write(b"{}")
                self.close_connection = "broken" in self.path

            do_GET = do_POST = do_LIST = answer  # noqa: N815 -- names that http.server looks for

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_address[1]}"


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever)
    thread.start()
    yield server
    server.http.shutdown()
    thread.join()
    server.http.server_close()


@pytest.fixture
def transport(server: Server) -> Iterator[Transport]:
    transport = Transport(VaultConfig(server.address, TokenAuth(Secret("s.own")), namespace="team"))
    yield transport
    transport.close()


def test_a_request_carries_its_own_token_and_nothing_of_the_one_before(server: Server, transport: Transport) -> None:
    transport.request("get", "database/creds/r", token=Secret("s.first"))
    transport.request("post", "sys/x", token=Secret("s.second"), payload={"a": 1})
    transport.request("list", "sys/y", token=None)
    (_, _, first, _), (method, path, second, body), (listed, _, third, _) = server.seen
    assert (method, path, body, listed) == ("POST", "/v1/sys/x", b'{"a": 1}', "LIST")
    assert (first["X-Vault-Token"], second["X-Vault-Token"]) == ("s.first", "s.second")
    assert "X-Vault-Token" not in third
    for headers in (first, second, third):
        assert headers["X-Vault-Namespace"] == "team"
        assert "Cookie" not in headers
        assert "Authorization" not in headers


def test_neither_proxies_nor_netrc_of_the_environment_are_used(
    server: Server, transport: Transport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login nobody password nothing\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    transport.request("get", "sys/x", token=Secret("s.first"))
    (_, _, headers, _) = server.seen[0]
    assert "Authorization" not in headers


def test_a_redirect_is_an_answer_and_is_not_followed(server: Server, transport: Transport) -> None:
    with pytest.raises(VaultRefused, match="302"):
        transport.request("get", "moved/x", token=Secret("s.first"))
    assert len(server.seen) == 1


def test_an_answer_that_breaks_off_is_of_unknown_outcome(transport: Transport) -> None:
    with pytest.raises(VaultUnavailable) as broken:
        transport.request("get", "broken/x", token=Secret("s.first"))
    assert broken.value.outcome.value == "unknown"
    assert "s.first" not in str(broken.value)
