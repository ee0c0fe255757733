"""Strangers at the listener hold a few connections for a while: they stop no run, and no credential stays behind."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from itertools import cycle
from typing import Any

import httpx
import pytest
from bench import Bench
from fork_server import ForkServer
from test_serve import Served
from waiting import wait_for

from orchestrator.ledger.states import RunState
from orchestrator.server import connections
from orchestrator.server.descriptors import raise_descriptor_limit, reserve_of
from orchestrator.server.listener import bind, listener_app, listening
from orchestrator.telemetry.metrics import Metrics

KINDS = {
    "half-open": b"",
    "slow headers": b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: ",
    "slow body": b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nx",
    "idle keep-alive": b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
}
DESCRIPTORS = 1024


class Limited(Served):
    """`orchestrator serve` as one that may have no more than 1024 descriptors."""

    def start(self, *options: str) -> None:
        limited = (
            "/bin/sh",
            "-c",
            f'ulimit -n {DESCRIPTORS}; exec "$@"',
            "sh",
            sys.executable,
            "-m",
            "orchestrator.cli",
        )
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*limited, *self.words(*options)], env=self.environment, stdout=subprocess.DEVNULL, stderr=log
            )

    def descriptors(self) -> int:
        assert self.process is not None
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


@pytest.fixture
def served(bench: Bench, children: ForkServer) -> Iterator[Limited]:
    served = Limited(bench, children)
    try:
        yield served
    finally:
        if served.process is not None and served.process.poll() is None:
            served.process.kill()
            served.process.wait()


@contextmanager
def strangers(address: str, number: int) -> Iterator[list[int]]:
    """So many connections at once, of every kind as many, held open and made anew where they are cut off; yields how
    many were made."""
    host, _, port = address.rpartition(":")
    made, over = [0], threading.Event()

    def hold() -> None:
        held: list[socket.socket | None] = [None] * number
        while not over.is_set():
            for place, (connection, sent) in enumerate(zip(held, cycle(KINDS.values()), strict=False)):
                if over.is_set():
                    break
                with suppress(OSError):
                    if connection is None:
                        held[place] = socket.create_connection((host, int(port)), timeout=0.5)
                        made[0] += 1
                        held[place].settimeout(0.5)  # type: ignore[union-attr]
                        held[place].sendall(sent)  # type: ignore[union-attr]
                        continue
                    connection.sendall(sent[-1:] or b"")
                    continue
                if (broken := held[place]) is not None:
                    broken.close()
                held[place] = None
        for connection in held:
            if connection is not None:
                connection.close()

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        yield made
    finally:
        over.set()
        thread.join()


def test_runs_begin_and_end_and_health_is_told_while_strangers_hold_2000_connections(served: Limited) -> None:
    served.put("often", "{ every: 1s }")
    served.start()
    wait_for(lambda: served.runs("often", RunState.SUCCEEDED), "a run")
    address = wait_for(lambda: [one["address"] for one in served.records() if "address" in one], "the listener")[-1]
    with strangers(address, 2000) as made:
        wait_for(lambda: made[0] >= 2000, "so many connections", 120)
        before = len(served.runs("often", RunState.SUCCEEDED))
        wait_for(lambda: len(served.runs("often", RunState.SUCCEEDED)) >= before + 3, "three more runs", 90)
        assert served.descriptors() < DESCRIPTORS - reserve_of(DESCRIPTORS) + connections.BACKLOG

        def healthy() -> bool:
            try:
                return httpx.get(f"http://{address}/healthz", trust_env=False, timeout=5).status_code == 200
            except httpx.HTTPError:
                return False

        wait_for(healthy, "an answer about its health")
    assert served.stop() == 0
    assert {run.state for run in served.runs("often")} == {RunState.SUCCEEDED}
    served.bench.assert_nothing_left()
    told = served.log.read_text()
    assert "Too many open files" not in told
    assert "Traceback" not in told
    assert told.count("connections to the listener are dropped") <= 5


@asynccontextmanager
async def answering() -> AsyncIterator[tuple[str, int]]:
    async def well() -> dict[str, str]:
        return {"loop": "ok"}

    bound = bind("127.0.0.1:0")
    try:
        async with listening(listener_app(health=well, readiness=well, metrics=Metrics()), bound):
            yield bound.getsockname()[:2]
    finally:
        bound.close()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_connection_that_does_not_come_to_its_end_is_cut_off(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 0.3)
    async with answering() as (host, port):
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(KINDS[kind])

        async def trickle() -> None:
            with suppress(OSError):
                while True:
                    writer.write(b"x" if KINDS[kind] else b"")
                    await writer.drain()
                    await asyncio.sleep(0.02)

        busy = asyncio.create_task(trickle())
        try:
            async with asyncio.timeout(20):
                with suppress(ConnectionError):
                    while await reader.read(4096):
                        pass
        finally:
            busy.cancel()
            writer.close()


async def test_who_asks_again_and_again_keeps_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 1.0)
    async with answering() as (host, port):
        reader, writer = await asyncio.open_connection(host, port)
        async with asyncio.timeout(20):
            until = asyncio.get_running_loop().time() + 2.5
            while asyncio.get_running_loop().time() < until:
                writer.write(KINDS["idle keep-alive"])
                assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200")
                await asyncio.sleep(0.05)
        writer.close()


async def test_with_too_many_the_oldest_is_dropped_and_the_newest_is_answered(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connections, "_dropped", connections.Seldom("dropped"))
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 1000.0)
    async with answering() as (host, port):
        held = [await asyncio.open_connection(host, port) for _ in range(connections.MAX_CONNECTIONS + 10)]
        async with httpx.AsyncClient(trust_env=False) as client:
            assert (await client.get(f"http://{host}:{port}/healthz", timeout=20)).status_code == 200
        async with asyncio.timeout(20):
            for reader, _ in held[:10]:
                with suppress(ConnectionError):
                    assert await reader.read() == b""
        assert sum(map(len, connections._in_order.values())) <= connections.MAX_CONNECTIONS
        for _, writer in held:
            writer.close()
    assert [record.getMessage() for record in caplog.records if "dropped" in record.getMessage()] == [
        "dropped (1 times)"
    ]


async def test_where_few_descriptors_are_left_for_the_runs_nobody_is_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    async with answering() as (host, port):
        with monkeypatch.context() as patched:
            patched.setattr(connections, "reserve_of", lambda limit: limit)
            with pytest.raises(httpx.HTTPError):
                async with httpx.AsyncClient(trust_env=False) as client:
                    await client.get(f"http://{host}:{port}/healthz", timeout=20)
        async with httpx.AsyncClient(trust_env=False) as client:
            assert (await client.get(f"http://{host}:{port}/healthz", timeout=20)).status_code == 200


async def test_that_nothing_can_be_accepted_is_told_once_a_minute(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]

    class Clock:
        def now(self) -> Any:
            raise NotImplementedError

        def monotonic(self) -> float:
            return now[0]

    monkeypatch.setattr(connections, "_exhausted", connections.Seldom("too many open files", Clock()))
    loop = asyncio.get_running_loop()
    refused = {"message": "socket.accept() out of system resource", "exception": OSError(24, "Too many open files")}
    with caplog.at_level(logging.WARNING), connections.exhaustion_told_seldom():
        for _ in range(1000):
            loop.call_exception_handler(refused)
        now[0] = 61.0
        loop.call_exception_handler(refused)
        loop.call_exception_handler({"message": "something else"})
    said = [record.getMessage() for record in caplog.records]
    assert said == ["too many open files (1 times)", "too many open files (1000 times)", "something else"]


def test_as_many_descriptors_are_used_as_there_may_be() -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1000, before[1]))
        raised = raise_descriptor_limit()
        assert raised == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        assert raised == min(before[1], 65_536) if before[1] != resource.RLIM_INFINITY else 65_536
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
