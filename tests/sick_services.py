"""Policy services that are sick or hostile: what each does with a question, byte by byte."""

from __future__ import annotations

import asyncio
import gzip
import json
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Asked:
    """One request as it arrived."""

    target: str
    headers: dict[str, str]
    body: bytes
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, body: bytes, status: str = "200 OK", **headers: str) -> None:
        """A whole answer."""
        said = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
        said |= {name.replace("_", "-"): value for name, value in headers.items()}
        head = "".join(f"{name}: {value}\r\n" for name, value in said.items())
        await self.send(f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body)


Behaviour = Callable[[Asked], Awaitable[None]]


@dataclass
class Sick:
    """A server on 127.0.0.1. `asked` is every request; metadata of AuthZEN are given as they should be, unless
    `metadata` says otherwise, and are no part of the behaviour."""

    behaviour: Behaviour
    metadata: Behaviour | None = None
    scheme: str = "http"
    host: str = "127.0.0.1"
    port: int = 0
    asked: list[Asked] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}"

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            asked = await _request(reader, writer)
            self.asked.append(asked)
            if asked.target.startswith("/.well-known/"):
                await (self.metadata or self._well)(asked)
            else:
                await self.behaviour(asked)
            writer.close()
            await writer.wait_closed()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()

    async def _well(self, asked: Asked) -> None:
        await asked.answer(json.dumps(metadata_of(self.url)).encode())


def metadata_of(url: str, **more: Any) -> dict[str, Any]:
    """What a decision point at this address says of itself."""
    return {
        "policy_decision_point": url,
        "access_evaluation_endpoint": f"{url}/access/v1/evaluation",
        "access_evaluations_endpoint": f"{url}/access/v1/evaluations",
        "supported_obligations": ["notification", "custom"],
        **more,
    }


async def _request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Asked:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    first, *lines = head.split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Asked(first.split(" ")[1], headers, body, writer)


@contextmanager
def sick_service(sick: Sick, tls: ssl.SSLContext | None = None) -> Iterator[Sick]:
    """Serve in a thread, until the block ends; whatever is under way then breaks off."""
    ready = threading.Event()
    stop: list[Callable[[], object]] = []

    async def serve() -> None:
        loop, stopping = asyncio.get_running_loop(), asyncio.Event()
        stop.append(lambda: loop.call_soon_threadsafe(stopping.set))
        server = await asyncio.start_server(sick, sick.host, 0, ssl=tls)
        sick.port = server.sockets[0].getsockname()[1]
        sick.scheme = "https" if tls else "http"
        ready.set()
        await stopping.wait()
        server.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0)  # an aborted connection is closed in the next turn of the loop

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(30)
    try:
        yield sick
    finally:
        stop[0]()
        thread.join()


# --- what they do


def saying(body: bytes | str, status: str = "200 OK", **headers: str) -> Behaviour:
    """The same answer to everybody."""
    data = body.encode() if isinstance(body, str) else body

    async def behave(asked: Asked) -> None:
        await asked.answer(data, status, **headers)

    return behave


async def silent(asked: Asked) -> None:
    """Takes the question and says nothing."""
    await asyncio.sleep(3600)


async def dripping(asked: Asked) -> None:
    """A byte now and then, so that no time-out between two bytes ever passes."""
    await asked.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100000\r\n\r\n")
    while True:
        await asked.send(b" ")
        await asyncio.sleep(0.05)


async def dripping_head(asked: Asked) -> None:
    """The same before the body begins."""
    await asked.send(b"HTTP/1.1 200 OK\r\n")
    while True:
        await asked.send(b"x-more: 1\r\n")
        await asyncio.sleep(0.05)


async def endless(asked: Asked) -> None:
    """A body without an end, as fast as it is taken."""
    await asked.send(
        b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n7\r\n{"a": "\r\n'
    )
    while True:
        await asked.send(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")


async def endless_head(asked: Asked) -> None:
    """Headers without an end."""
    await asked.send(b"HTTP/1.1 200 OK\r\n")
    while True:
        await asked.send(b"x-more: " + b"x" * 4000 + b"\r\n")


async def garbage(asked: Asked) -> None:
    """No HTTP at all."""
    await asked.send(b"\x16\x03\x01\x00\xff\x00SSH-2.0-x\r\n\r\n")


def half(body: bytes) -> Behaviour:
    """An answer that is cut off, though its beginning would do."""

    async def behave(asked: Asked) -> None:
        await asked.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100000\r\n\r\n" + body)

    return behave


def bomb(body: bytes, size: int) -> bytes:
    """A few bytes that stand for many."""
    return gzip.compress(body + b" " * size)


async def echoing(asked: Asked) -> None:
    """Gives back what it was sent, as debugging proxies do."""
    said = asked.headers.get("authorization", "")
    body = {"result": {"allow": False, "reasons": [said]}, "decision": False, "context": {"reasons": [said]}}
    await asked.answer(json.dumps(body).encode(), x_echo=said)


async def echoing_error(asked: Asked) -> None:
    """The same with an error."""
    await asked.answer(asked.headers.get("authorization", "").encode(), "500 Oops", content_type="text/plain")
