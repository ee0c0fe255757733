"""A real HTTP server in the place of an issuer: it answers what a test plans, and remembers what it was asked."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn


@dataclass
class Planned:
    """One answer. `parts` are sent one by one, each after `slow` seconds; the last one waits for `hold`."""

    parts: list[bytes]
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    hold: threading.Event | None = None
    slow: float = 0


def json_of(document: Any, **headers: str) -> Planned:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Planned([document if isinstance(document, bytes) else json.dumps(document).encode()], headers=named)


@dataclass
class IssuerServer:
    """`asked` holds path, headers and body of each request; what is not planned is 404."""

    url: str
    answers: dict[str, Planned] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    arrived: threading.Event = field(default_factory=threading.Event)

    def paths(self) -> list[str]:
        return [path for path, _, _ in self.asked]

    def clear(self) -> None:
        self.answers.clear()
        self.asked.clear()
        self.arrived.clear()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        import asyncio

        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.asked.append((scope["path"], headers, body))
        self.arrived.set()
        planned = self.answers.get(scope["path"], Planned([b"{}"], status=404))
        sent = [(name.encode(), value.encode()) for name, value in planned.headers.items()]
        await send({"type": "http.response.start", "status": planned.status, "headers": sent})
        for number, part in enumerate(planned.parts, start=1):
            await asyncio.sleep(planned.slow)
            if planned.hold is not None and number == len(planned.parts):
                await asyncio.to_thread(planned.hold.wait)
            more = number < len(planned.parts)
            await send({"type": "http.response.body", "body": part, "more_body": more})


@contextmanager
def issuer_server() -> Iterator[IssuerServer]:
    """Serves in a thread until the block is left."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    issuer = IssuerServer(f"http://127.0.0.1:{listener.getsockname()[1]}")
    settings = uvicorn.Config(
        issuer, log_level="critical", lifespan="off", access_log=False, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield issuer
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
