"""Connections to one Vault that stay open, in the place of the `requests` session under hvac's adapters.

A request is one send, and nothing of one step's request can reach another's: no cookies, proxies, netrc, defaults
or redirects are mixed in. What matters for an issuance is known of every failure: whether Vault can have seen it.
"""

from __future__ import annotations

import json as json_codec
import re
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import cached_property
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from orchestrator.errors import UsageError, VaultUnreachable
from orchestrator.vault.answer import Answer, LeanResponse

_LONGEST_IDLE = 30.0
"""Seconds. What stands between us and Vault forgets connections, often after a minute and without a word."""

_FIRST_SEND = 16 * 1024
"""Bytes: one TLS record at most, so that a send that fails has not given the peer a part that it can read."""

_AS_IT_IS = "!$%&'()*+,/:;=?@[]~"
"""What a path may hold beside letters and digits; the rest is sent as %XX. Paths may come with a query."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class NotSent(Exception):
    """No connection was to be had, or it took not one byte: the request was certainly not carried out."""


class Connections:
    """What hvac's adapters need of a session: `request` and `close`. Safe to use from several threads.

    `ca` is a file or a folder of certificate authorities (certifi's by default); at most `keep` connections that
    nobody uses stay open. `clock` gives monotonic seconds.
    """

    verify = cert = proxies = None  # hvac looks for them; they are none of a request's business here

    def __init__(
        self, address: str, *, ca: Path | None, keep: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._address = address
        self._ca = ca
        self._keep = keep
        self._clock = clock
        self._idle: deque[tuple[HTTPConnection, float]] = deque()
        self._closed = False

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        timeout: tuple[float, float],
        allow_redirects: bool,
        json: Any = None,
        verify: None = None,
        cert: None = None,
        proxies: None = None,
    ) -> Answer:
        """Send, and read the answer to its end; redirects are answers. `timeout` is connect and read, in seconds.

        Raises UsageError for an address or a header that cannot serve, VaultUnreachable where TLS does not come about,
        NotSent where Vault cannot have seen the request for another reason, and OSError or HTTPException where it can.
        """
        assert not allow_redirects, "they would carry the Vault token to the other host"
        _, _, authority = self._origin
        target = "/" + url.split("/", 3)[3]
        data = _message(method.upper(), target, {"Host": authority, **headers}, json)
        connection = self._that_took(data, *timeout)
        try:
            answer = LeanResponse(connection.sock, method=method.upper()).answer()
        except BaseException:
            connection.close()
            raise
        self._put_back(connection, answer)
        return answer

    def close(self) -> None:
        """Close idle connections, and those in use once their answer is there."""
        self._closed = True
        while self._idle:
            self._idle.pop()[0].close()

    @cached_property
    def _origin(self) -> tuple[str, tuple[str, int], str]:
        """Scheme, host with port, and what the Host header says."""
        try:
            parts = urlsplit(self._address)
            port = parts.port or (443 if parts.scheme == "https" else 80)
            host = parts.hostname
        except ValueError:
            host = None
        if not host or parts.scheme not in ("http", "https"):
            raise UsageError(f"{self._address!r} is not an address of a Vault server")
        if "@" in parts.netloc:
            raise UsageError("an address of a Vault server has no user and no password in it")
        return parts.scheme, (host, port), parts.netloc

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        import certifi

        ca = self._ca or Path(certifi.where())
        try:
            made = ssl.create_default_context(cafile=None if ca.is_dir() else ca, capath=ca if ca.is_dir() else None)
        except OSError as error:
            raise UsageError(
                f"the certificate authorities in {ca} cannot be read: {error.strerror or error}",
                hint="set ORCHESTRATOR_VAULT_CACERT to the certificate authority's file",
            ) from error
        made.set_alpn_protocols(["http/1.1"])
        return made

    def _that_took(self, data: bytes, connect: float, read: float) -> HTTPConnection:
        """A connection on which the request is on its way. One that Vault has closed meanwhile is replaced."""
        idle = self._take()
        if idle is not None:
            try:
                return _sent(idle, data, read)
            except NotSent:
                pass
        return _sent(self._connect(connect), data, read)

    def _take(self) -> HTTPConnection | None:
        """An idle connection of which nothing says that it is over; what is to be read on it can only be its end."""
        while True:
            try:
                connection, since = self._idle.pop()
            except IndexError:
                return None
            if self._clock() - since <= _LONGEST_IDLE and not _readable(connection.sock):
                return connection
            connection.close()

    def _put_back(self, connection: HTTPConnection, answer: Answer) -> None:
        if not answer.reusable or self._closed or len(self._idle) >= self._keep:
            connection.close()
            return
        self._idle.append((connection, self._clock()))
        if self._closed:
            self.close()  # it was closed in between

    def _connect(self, seconds: float) -> HTTPConnection:
        scheme, (host, port), _ = self._origin
        connection = (
            HTTPSConnection(host, port, timeout=seconds, context=self._tls)
            if scheme == "https"
            else HTTPConnection(host, port, timeout=seconds)
        )
        try:
            connection.connect()
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError) as error:
            connection.close()
            raise NotSent from error
        except ssl.SSLCertVerificationError as error:
            connection.close()
            raise VaultUnreachable(
                f"the TLS certificate of Vault at {self._address} was not accepted: {error.verify_message}",
                hint="set ORCHESTRATOR_VAULT_CACERT to the certificate authority's file, and use the name that the "
                "certificate holds",
            ) from error
        except ssl.SSLError as error:
            connection.close()
            raise VaultUnreachable(
                f"Vault at {self._address} does not speak TLS as it is asked to ({error.reason or 'no reason given'})",
                hint="does it listen with plain http (`http://` in VAULT_ADDR), or with an older version of TLS?",
            ) from error
        except UnicodeError as error:
            raise UsageError(f"{self._address!r} is not an address of a Vault server") from error
        except OSError as error:
            connection.close()
            raise NotSent from error
        return connection


def _sent(connection: HTTPConnection, data: bytes, read: float) -> HTTPConnection:
    """Raises NotSent where the connection took nothing, and OSError where it took a part."""
    try:
        connection.sock.settimeout(read)
        taken = connection.sock.send(memoryview(data)[:_FIRST_SEND])
    except OSError as error:
        connection.close()
        raise NotSent from error
    if taken < len(data):
        try:
            connection.sock.sendall(memoryview(data)[taken:])
        except OSError:
            connection.close()
            raise
    return connection


def _readable(connected: socket.socket) -> bool:
    waiting = select.poll()
    waiting.register(connected, select.POLLIN)
    return bool(waiting.poll(0))


def _message(method: str, target: str, headers: Mapping[str, str], payload: Any) -> bytes:
    """The bytes of a request (RFC 9112, 3). Raises UsageError for a value that no header can carry, not quoting it."""
    lines = [f"{method} {quote(target, safe=_AS_IT_IS)} HTTP/1.1"]
    for name, value in headers.items():
        if _CONTROL.search(value) or not value.isascii():
            raise UsageError(f"what is to be sent to Vault as {name} holds characters that a header cannot carry")
        lines.append(f"{name}: {value}")
    lines.append("Accept-Encoding: identity")
    body = b""
    if payload is not None:
        body = json_codec.dumps(payload).encode()
        lines.append("Content-Type: application/json")
    if body or method not in ("GET", "HEAD"):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("ascii") + body
