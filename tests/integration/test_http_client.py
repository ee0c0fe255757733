"""The client for what we ask of others: what a question that is given up leaves behind."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from orchestrator.network.http_client import http_client
from orchestrator.pep.fetching import client as pep_client

QUICK = 0.1
"""Seconds after which a question is given up: the connection is there, its handshake goes on for ever."""


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Of a server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def sockets() -> int:
    """How many this process has open. What is only forgotten, not closed, counts: nothing is collected before."""
    count = 0
    for each in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            count += os.readlink(f"/proc/self/fd/{each}").startswith("socket:")
    return count


async def closed(writer: asyncio.StreamWriter) -> None:
    """What was written is sent, and nothing is left of the connection."""
    with suppress(ConnectionError):
        await writer.drain()
        writer.close()
        await writer.wait_closed()


@pytest.fixture(autouse=True)
def uncollected() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("make", [lambda: http_client(30), lambda: pep_client(None, 30)], ids=["ours", "pep"])
async def test_a_question_that_is_given_up_leaves_no_socket_behind(
    silent_port: int, scheme: str, make: Callable[[], httpx.AsyncClient]
) -> None:
    async with make() as client:
        before = sockets()
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(QUICK):
                    await client.get(f"{scheme}://127.0.0.1:{silent_port}")
        assert sockets() == before


async def test_a_task_that_is_cancelled_leaves_no_socket_behind(silent_port: int) -> None:
    async with http_client(30) as client:
        before = sockets()
        asked = asyncio.create_task(client.get(f"https://127.0.0.1:{silent_port}"))
        await asyncio.sleep(QUICK)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert sockets() == before


async def test_a_handshake_over_a_unix_socket_leaves_none_either(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "silent"))
        listener.listen()
        async with http_client(30, socket=tmp_path / "silent") as client:
            before = sockets()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(QUICK):
                    await client.get("https://pdp")
            assert sockets() == before


async def test_a_handshake_that_fails_is_told_as_httpx_tells_it() -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await closed(writer)

    server = await asyncio.start_server(plain, "127.0.0.1", 0)
    async with server, http_client(30) as client:
        with pytest.raises(httpx.ConnectError):
            await client.get(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}")


async def test_a_proxy_of_the_environment_is_not_used(silent_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n")
        await closed(writer)

    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{silent_port}")
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server, http_client(30) as client:
        answered = await client.get(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        assert answered.status_code == 302, "neither is a redirect followed"
