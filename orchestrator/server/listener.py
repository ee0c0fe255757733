"""The small HTTP listener of the scheduler: `/healthz`, `/readyz` and `/metrics`. Needs the extra `serve`.

It answers everybody who can reach it, so it says what is well and what is not, and no more. Further routes ask for
more than that of those who come.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from orchestrator.errors import UsageError
from orchestrator.server.connections import BACKLOG, BoundedProtocol, exhaustion_told_seldom
from orchestrator.telemetry.metrics import Metrics

Check = Callable[[], Awaitable[Mapping[str, str]]]
"""Answers each part's name with `ok`, or with a word for what is wrong."""

OK = "ok"


def listener_app(*, health: Check, readiness: Check, metrics: Metrics, routes: Sequence[BaseRoute] = ()) -> Starlette:
    """200 where every part is `ok`, else 503; the parts as JSON."""

    def answering(check: Check) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            parts = await check()
            well = all(state == OK for state in parts.values())
            return JSONResponse({"ok": well, **parts}, status_code=200 if well else 503)

        return answer

    async def exposition(request: Request) -> Response:
        body, content_type = metrics.exposition()
        return Response(body, headers={"Content-Type": content_type})

    return Starlette(
        routes=[
            Route("/healthz", answering(health)),
            Route("/readyz", answering(readiness)),
            Route("/metrics", exposition),
            *routes,
        ]
    )


def bind(address: str) -> socket.socket:
    """A listening socket at `HOST:PORT`, `[IPV6]:PORT`; port 0 takes a free one. Raises UsageError."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        raise UsageError(f"{address!r} is not HOST:PORT", hint="for example 127.0.0.1:9464")
    bare = host.strip("[]")
    family = socket.AF_INET6 if ":" in bare else socket.AF_INET
    # Only what says that it is TCP has TCP_NODELAY from asyncio; without it the body of an answer waits for the other
    # side's delayed acknowledgement of its head, 40 ms.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((bare, int(port)))
        listening.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        listening.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"cannot listen at {address}: {reason}", hint="give a free address with --listen, or --no-listen"
        ) from error
    return listening


@asynccontextmanager
async def listening(
    app: ASGIApp,
    bound: socket.socket,
    *,
    protocol: type[BoundedProtocol] = BoundedProtocol,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[None]:
    """Answer at a bound socket until the context is left."""
    settings = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        log_config=None,
        lifespan="off",
        access_log=False,
        timeout_graceful_shutdown=1,
        timeout_keep_alive=5,
        backlog=BACKLOG,
        server_header=False,
    )
    if tls is not None:
        settings.load()
        settings.ssl = tls
    server = _Server(settings)
    with exhaustion_told_seldom():
        task = asyncio.create_task(server.serve(sockets=[bound]), name="listener")
        try:
            yield
        finally:
            server.end()
            await task


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._over = asyncio.Event()

    def end(self) -> None:
        """Answer what has been asked, then end."""
        self.should_exit = True
        self._over.set()

    async def main_loop(self) -> None:
        """Wait for the end, once a second for the header with the date alone: not ten times, with nothing to do."""
        while not await self.on_tick(0):
            with suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._over.wait()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the scheduler's."""
        yield
