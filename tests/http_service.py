"""An HTTP service for tests: it answers as its routes say, and remembers what it was sent."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Received:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Service:
    """A server that answers with what its routes say and remembers what it was sent."""

    url: str = ""
    routes: dict[str, tuple[int, dict[str, str], bytes]] = field(default_factory=dict)
    received: list[Received] = field(default_factory=list)
    hold: threading.Event = field(default_factory=threading.Event)

    def answers(self, path: str, status: int = 200, body: bytes = b"", **headers: str) -> None:
        self.routes[path] = (status, {name.replace("_", "-"): value for name, value in headers.items()}, body)


@contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[Service]:
    """On a free port of this machine; with `tls` over https, where it notes whose certificate it was shown."""
    service = Service()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            service.received.append(Received(self.command, self.path, headers, body))
            path = self.path.partition("?")[0]
            if path == "/hold":
                service.hold.wait(60)
            if path == "/endless":
                self.send_response(200)
                self.end_headers()
                try:
                    while not service.hold.is_set():
                        self.wfile.write(b"x" * 65536)
                except OSError:
                    self.close_connection = True
                return
            status, answer_headers, content = service.routes.get(path, (404, {}, b""))
            self.send_response(status)
            for name, value in answer_headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = answer  # noqa: N815 -- the names that http.server wants

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    service.url = f"http{'s' if tls else ''}://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield service
    finally:
        service.hold.set()
        server.shutdown()
        thread.join()
        server.server_close()
