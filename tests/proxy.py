"""A TCP proxy that fails on demand, for tests between a real client and a real server.

It listens on a free port of 127.0.0.1 and forwards to a TCP address or a Unix socket, in a thread
of its own. Everything can be changed from the test at any time. With `http=True` it knows where
requests begin and end, so that faults can be chosen by a request's first line:

    with Proxy(("127.0.0.1", 8200), http=True) as proxy:
        proxy.fail(Answer(503), times=2, when=lambda line: "/creds/" in line)
        proxy.fail(DropAnswer(), when=lambda line: line.startswith("PUT /v1/sys/leases/revoke"))
        proxy.refuse(seconds=2.0)
        proxy.cut()
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from http_messages import Message, answer, read_message

from orchestrator.devstack.ports import free_port

T = TypeVar("T")
Target = tuple[str, int] | Path


class Way(Enum):
    """A direction of forwarding."""

    TO_SERVER = "to server"
    TO_CLIENT = "to client"


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer with this status instead of forwarding the request."""

    status: int
    body: bytes = b'{"errors": ["fault"]}'
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Garbage:
    """Answer with these bytes instead of forwarding the request, and close."""

    data: bytes = b"\x00\xffthis is not HTTP\r\n\r\n"


@dataclass(frozen=True, slots=True)
class GarbledAnswer:
    """Forward the request, and replace the body of the server's answer: it was done, but what came is useless."""

    body: bytes = b"this is not JSON"


@dataclass(frozen=True, slots=True)
class DropAnswer:
    """Forward the request, wait for the whole answer, and drop it: the server has certainly done its work.

    Then the client's connection is closed, or with `close=False` left open in silence.
    """

    close: bool = True


@dataclass(frozen=True, slots=True)
class CutAfterForwarding:
    """Forward the request, call `when` (which may block, in a thread), and cut both sides before any answer is read."""

    when: Callable[[], object] = lambda: None


Fault = Answer | Garbage | GarbledAnswer | DropAnswer | CutAfterForwarding


@dataclass(slots=True)
class _Rule:
    fault: Fault
    left: int
    when: Callable[[str], bool]


class _End(Enum):
    """What becomes of a connection on which certain bytes came."""

    CUT = "cut before they are passed on"
    CUT_AT_THE_ANSWER = "cut when the server answers them"
    SILENCE = "open, and nothing of the server is passed on"


@dataclass(slots=True)
class _Marker:
    data: bytes
    end: _End
    left: int


@dataclass(eq=False, slots=True)
class _Connection:
    """The two sides of one forwarded connection."""

    client_in: asyncio.StreamReader
    client_out: asyncio.StreamWriter
    server_in: asyncio.StreamReader
    server_out: asyncio.StreamWriter
    silent: bool = False
    """Answers are not passed on."""
    doomed: bool = False
    """Cut as soon as the server answers."""

    def cut(self) -> None:
        for writer in (self.client_out, self.server_out):
            _abort(writer)

    def half_close(self, way: Way) -> None:
        writer = self.server_out if way is Way.TO_SERVER else self.client_out
        if not writer.is_closing() and writer.can_write_eof():
            writer.write_eof()


class Proxy:
    """See the module. Use as a context manager; leaving it cuts what is open and ends the thread."""

    def __init__(self, target: Target, *, http: bool = False) -> None:
        self.target = target
        self.http = http
        self.port = free_port()
        self.requests: list[str] = []
        """The first line of every request that came (`http=True`), whatever became of it."""
        self.accepted = 0
        """How many connections were accepted."""
        self._rules: list[_Rule] = []
        self._markers: list[_Marker] = []
        self._silent_connections = 0
        self._delays = {Way.TO_SERVER: 0.0, Way.TO_CLIENT: 0.0}
        self._connections: set[_Connection] = set()
        self._clients: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy")

    @property
    def address(self) -> str:
        """The proxy as an HTTP address."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._run(self._listen())
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self) -> int:
        """Reset every connection that is open now; returns how many."""
        return self._call(self._cut)

    def refuse(self, *, seconds: float | None = None) -> None:
        """Refuse new connections (nobody listens any more) until `accept`, or for so long; open ones go on."""
        self._run(self._refuse(seconds))

    def accept(self) -> None:
        """Listen again, on the same port."""
        self._run(self._listen())

    def delay(self, *, to_server: float = 0.0, to_client: float = 0.0) -> None:
        """Hold back, from now on, all that goes each way by so many seconds (for each piece of data)."""
        self._call(lambda: self._delays.update({Way.TO_SERVER: to_server, Way.TO_CLIENT: to_client}))

    def half_close(self, way: Way) -> None:
        """Say on every open connection that nothing more comes this way; the other way stays open."""
        self._call(lambda: [connection.half_close(way) for connection in self._connections])

    def swallow(self, connections: int) -> None:
        """Pass on nothing that the server says on the next so many connections; they stay open."""

        def set_number() -> None:
            self._silent_connections = connections

        self._call(set_number)

    def fail(self, fault: Fault, *, times: int = 1, when: Callable[[str], bool] = lambda line: True) -> None:
        """Do this to the next `times` requests whose first line satisfies `when` (`http=True` only)."""
        assert self.http, "only a proxy that knows HTTP can choose requests"
        self._call(lambda: self._rules.append(_Rule(fault, times, when)))

    def cut_at(self, data: bytes, *, forwarded: bool, times: int = 1) -> None:
        """Cut the connection on which the client sends these bytes.

        `forwarded=False`: they never reach the server. `forwarded=True`: they do, and the cut comes
        when the server answers them, so that it has done its work and the client does not know.
        """
        end = _End.CUT_AT_THE_ANSWER if forwarded else _End.CUT
        self._call(lambda: self._markers.append(_Marker(data, end, times)))

    def silence_at(self, data: bytes, *, times: int = 1) -> None:
        """Pass on what a client says with these bytes in it, and nothing of what the server says from then on."""
        self._call(lambda: self._markers.append(_Marker(data, _End.SILENCE, times)))

    @property
    def unused(self) -> int:
        """How many faults that were asked for have not happened yet: a test should end with 0."""
        return self._call(lambda: sum(rule.left for rule in self._rules) + sum(mark.left for mark in self._markers))

    def heal(self) -> None:
        """Forget every fault and delay, and accept connections."""
        self._call(self._forget)
        self.accept()

    def _call(self, work: Callable[[], T]) -> T:
        async def go() -> T:
            return work()

        return self._run(go())

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def _forget(self) -> None:
        self._rules, self._markers, self._silent_connections = [], [], 0
        self._delays = dict.fromkeys(Way, 0.0)

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._accepted, "127.0.0.1", self.port)

    async def _refuse(self, seconds: float | None) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        if seconds is not None:
            self._later(self._accept_after(seconds))

    async def _accept_after(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self._listen()

    def _later(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _cut(self) -> int:
        """Also those that have no connection to the server yet."""
        for connection in self._connections:
            connection.cut()
        for client in self._clients:
            _abort(client)
        return len(self._clients)

    async def _end(self) -> None:
        await self._refuse(None)
        self._cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._loop.shutdown_default_executor()

    def _accepted(self, client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self._clients.add(client_out)
        serving = self._later(self._serve(client_in, client_out))
        serving.add_done_callback(lambda task: self._clients.discard(client_out))

    async def _serve(self, client_in: asyncio.StreamReader, client_out: asyncio.StreamWriter) -> None:
        try:
            if isinstance(self.target, Path):
                server_in, server_out = await asyncio.open_unix_connection(self.target)
            else:
                server_in, server_out = await asyncio.open_connection(*self.target)
        except OSError:
            _abort(client_out)
            return
        connection = _Connection(client_in, client_out, server_in, server_out)
        if self._silent_connections:
            self._silent_connections -= 1
            connection.silent = True
        self._connections.add(connection)
        try:
            await (self._exchange(connection) if self.http else self._pump_both(connection))
        except (OSError, asyncio.IncompleteReadError):
            pass  # one side went away: so does the other
        finally:
            self._connections.discard(connection)
            await _close(client_out, server_out)

    async def _pump_both(self, connection: _Connection) -> None:
        ways = [asyncio.ensure_future(self._pump(connection, way)) for way in Way]
        try:
            await asyncio.gather(*ways)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _pump(self, connection: _Connection, way: Way) -> None:
        to_server = way is Way.TO_SERVER
        reader = connection.client_in if to_server else connection.server_in
        writer = connection.server_out if to_server else connection.client_out
        while data := await reader.read(1 << 16):
            if to_server and (marker := self._marker_in(data)) is not None:
                if marker.end is _End.CUT:
                    connection.cut()
                    return
                if marker.end is _End.SILENCE:
                    connection.silent = True
                else:
                    connection.doomed = True
            elif not to_server and connection.doomed:
                connection.cut()
                return
            await self._send(connection, writer, data, way)
        connection.half_close(way)

    def _marker_in(self, data: bytes) -> _Marker | None:
        for marker in self._markers:
            if marker.left and marker.data in data:
                marker.left -= 1
                return marker
        return None

    async def _send(self, connection: _Connection, writer: asyncio.StreamWriter, data: bytes, way: Way) -> None:
        if self._delays[way]:
            await asyncio.sleep(self._delays[way])
        if not (connection.silent and way is Way.TO_CLIENT):
            writer.write(data)
            await writer.drain()

    async def _exchange(self, connection: _Connection) -> None:
        """Requests and answers in turn; HTTP pipelining is not used by anybody here."""
        while (request := await read_message(connection.client_in)) is not None:
            self.requests.append(request.first_line)
            fault = self._fault_for(request.first_line)
            if isinstance(fault, Answer):
                data = answer(fault.status, fault.body, fault.headers)
                await self._send(connection, connection.client_out, data, Way.TO_CLIENT)
            elif isinstance(fault, Garbage):
                await self._send(connection, connection.client_out, fault.data, Way.TO_CLIENT)
                return
            else:
                await self._send(connection, connection.server_out, request.raw, Way.TO_SERVER)
                if isinstance(fault, CutAfterForwarding):
                    await asyncio.to_thread(fault.when)
                    connection.cut()
                    return
                if not await self._pass_answer(connection, request, fault):
                    return

    async def _pass_answer(
        self, connection: _Connection, request: Message, fault: GarbledAnswer | DropAnswer | None
    ) -> bool:
        """Read the answer and pass it on, unless the fault says otherwise. Returns whether the connection goes on."""
        received = await read_message(connection.server_in, answer_to=request.first_line)
        if received is None or (isinstance(fault, DropAnswer) and fault.close):
            return False
        if isinstance(fault, DropAnswer):
            return True
        data = answer(200, fault.body) if isinstance(fault, GarbledAnswer) else received.raw
        await self._send(connection, connection.client_out, data, Way.TO_CLIENT)
        return not received.interim or await self._pass_answer(connection, request, None)

    def _fault_for(self, first_line: str) -> Fault | None:
        for rule in self._rules:
            if rule.left and rule.when(first_line):
                rule.left -= 1
                return rule.fault
        return None


def _abort(writer: asyncio.StreamWriter) -> None:
    """Close with a reset (RST), as when a machine or a middlebox drops a connection."""
    connected = writer.get_extra_info("socket")
    if connected is not None and not writer.is_closing():
        with contextlib.suppress(OSError):
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _close(*writers: asyncio.StreamWriter) -> None:
    for writer in writers:
        writer.close()
    for writer in writers:
        with contextlib.suppress(OSError):
            await writer.wait_closed()
