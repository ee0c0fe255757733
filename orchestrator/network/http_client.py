"""The HTTP client for what we ask of others. Imported where something is asked: httpx takes a while to load."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from httpcore import AsyncNetworkStream

_OPENED = ("connection.connect_tcp.complete", "connection.connect_unix_socket.complete")


class ClosingTransport(httpx.AsyncHTTPTransport):
    """A transport that leaves no socket behind when a request is cancelled while its connection is being made.

    httpcore 1.0.9 closes a connection whose TLS handshake fails or runs out of its own time, but not one whose task
    is cancelled: the socket stays open, registered with the loop, until it is collected. What was opened is told by
    httpcore's `trace` extension.
    """

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """As httpx. Whatever ends it without an answer closes what it opened."""
        opened: list[AsyncNetworkStream] = []

        async def remember(event: str, info: Mapping[str, Any]) -> None:
            if event in _OPENED:
                opened.append(info["return_value"])

        request.extensions = {**request.extensions, "trace": remember}
        try:
            return await super().handle_async_request(request)
        except BaseException:
            for stream in opened:
                await stream.aclose()
            raise


def http_client(
    timeout: float | httpx.Timeout,
    *,
    trust: ssl.SSLContext | None = None,
    socket: Path | None = None,
    keep_alive: bool = True,
) -> httpx.AsyncClient:
    """A client that takes nothing from the environment, no proxy either, and follows no redirect.

    `timeout`: of each operation, in seconds. `trust`: whom to trust over TLS, None for the system's authorities.
    `socket`: a Unix socket to connect to, whatever the URL says. Without `keep_alive` each request has a connection
    of its own.
    """
    limits = httpx.Limits() if keep_alive else httpx.Limits(max_keepalive_connections=0)
    transport = ClosingTransport(
        verify=trust or ssl.create_default_context(),
        trust_env=False,
        limits=limits,
        uds=None if socket is None else str(socket),
    )
    return httpx.AsyncClient(transport=transport, trust_env=False, timeout=timeout, follow_redirects=False)
