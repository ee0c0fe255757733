"""One question to a policy service over HTTP, and its answer or what was wrong with it.

Everything about a question is over by one deadline: files, connection, TLS, sending, reading, and trying again. Asked
again is only where a connection was refused, because then nothing was asked. Redirects are not followed, since our
token would go to the other place; proxies and netrc of the environment are not used.

Each question has a connection of its own: the other side may close one that was kept at the very moment in which it is
used again, and a step that is permitted would be denied.
"""

from __future__ import annotations

import asyncio
import os
import re
import ssl
import stat
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from orchestrator.jsontypes import JsonObject, JsonValue
from orchestrator.policy.documents import MAX_ANSWER_BYTES
from orchestrator.policy.engines.services.exact_json import NotReadable, read_object, write_question
from orchestrator.policy.engines.services.options import ServiceOptions, tls_context, why_not_tls
from orchestrator.policy.types import Decision
from orchestrator.redaction.redactor import Redactor
from orchestrator.secret import Secret

if TYPE_CHECKING:
    import httpx
    from tenacity import AsyncRetrying

MAX_BODY_BYTES = MAX_ANSWER_BYTES + (1 << 14)
"""Of a response: the longest answer, and what a service puts around it."""
MAX_REASONS, MAX_REASON_LENGTH = 50, 1000
"""How many reasons of a service are kept, and how many characters of each."""

_MAX_TOKEN_BYTES = 1 << 16
_TOKEN = re.compile(r"[\x21-\x7e]+")
_EXCERPT = 200
"""Characters of what a service says about an error of its own."""
_TRIES = 4
_CONNECTING = 0.9
"""Of the deadline: a connection must be there by then, TLS included. For the rest the deadline is enough, but httpx
leaves a socket open whose TLS handshake is cancelled (httpcore 1.0, `AnyIOStream.start_tls`)."""


class Unanswered(Exception):
    """There is no answer that can be obeyed; the message says why. It holds nothing secret. `status` of HTTP, or 0."""

    def __init__(self, reason: str, *, status: int = 0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status


@dataclass(frozen=True, slots=True)
class Answer:
    """A JSON object, and the headers that it came with."""

    body: JsonObject
    headers: Mapping[str, str]


@dataclass(slots=True)
class _Client:
    """A client for one event loop, made of the TLS files as they were then. It keeps no connection."""

    loop: asyncio.AbstractEventLoop
    files: tuple[object, ...]
    session: httpx.AsyncClient


@dataclass(slots=True)
class PolicyService:
    """A service that is asked by HTTP. May be used from one event loop after another."""

    options: ServiceOptions
    remember: Callable[[Secret], None] = field(default=lambda secret: None, repr=False)
    """Told each token before it is used, so that no log shows it."""
    _client: _Client | None = field(default=None, repr=False)

    @property
    def origin(self) -> str:
        """Scheme, host and port: what reasons call it."""
        parts = urlsplit(self.options.url)
        return f"{parts.scheme}://{parts.netloc}"

    @asynccontextmanager
    async def deadline(self) -> AsyncIterator[None]:
        """Around everything that one question takes. Raises Unanswered when the time is over."""
        try:
            async with asyncio.timeout(self.options.timeout):
                yield
        except TimeoutError:
            raise Unanswered(f"no answer within {self.options.timeout:g}s") from None

    async def ask(
        self,
        method: str,
        url: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send one request within the caller's `deadline`, and read its answer. Raises Unanswered."""
        token = self._token()
        sent = {"accept": "application/json", "accept-encoding": "identity", **(headers or {})}
        if body is not None:
            sent["content-type"] = "application/json"
        if token is not None:
            sent["authorization"] = f"Bearer {token.reveal()}"
        client = self._client_now()
        async for attempt in _while_refused():
            with attempt:
                return await _exchange(client, method, url, sent, body, token)
        raise AssertionError("the last attempt returns or raises")

    async def aclose(self) -> None:
        """Close the client. What is under way in this loop breaks off; asking again makes another one."""
        client, self._client = self._client, None
        if client is not None and client.loop is asyncio.get_running_loop():
            await client.session.aclose()

    def denied(self, reason: str, *, engine: str, revision: str, decision_id: str = "") -> Decision:
        """A denial because of what was wrong with the answer, or with the way to it."""
        return Decision(
            False, (f"{self.origin} gave no decision: {reason}",), engine, revision, decision_id=decision_id
        )

    def _client_now(self) -> _Client:
        """The one of this loop, unless a certificate was replaced. One of another loop has nothing open to close."""
        import httpx

        from orchestrator.network.http_client import http_client

        loop = asyncio.get_running_loop()
        files = _state_of(self.options.ca_file, self.options.client_cert, self.options.client_key)
        client = self._client
        if client is None or client.loop is not loop or client.files != files:
            try:
                context = (
                    tls_context(self.options) if self.options.uses_tls else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                )
            except OSError as error:
                raise Unanswered(f"a certificate or key cannot be used: {why_not_tls(error)}") from None
            patience = httpx.Timeout(None, connect=_CONNECTING * self.options.timeout)
            made = http_client(patience, trust=context, socket=self.options.socket, keep_alive=False)
            self._client = client = _Client(loop, files, made)
        return client

    def _token(self) -> Secret | None:
        if self.options.token_file is None:
            return None
        try:
            text = _read(self.options.token_file).decode("ascii").strip()
        except OSError as error:
            raise Unanswered(f"the token file cannot be read: {error.strerror or error}") from None
        except UnicodeDecodeError:
            text = ""
        if not _TOKEN.fullmatch(text):
            raise Unanswered("the token file holds no bearer token (one line of printable ASCII without blanks)")
        token = Secret(text)
        self.remember(token)
        return token


def bounded(decision: Decision) -> Decision:
    """The decision with reasons that people can still read, however many and long the service made them."""
    reasons = [_cut(reason, MAX_REASON_LENGTH) for reason in decision.reasons[:MAX_REASONS]]
    if (more := len(decision.reasons) - MAX_REASONS) > 0:
        reasons.append(f"... and {more} more")
    return replace(decision, reasons=tuple(reasons))


def short_text(value: JsonValue, *, limit: int = 200) -> str:
    """A name that a service gave, on one line; empty where it gave none."""
    return _cut(" ".join(value.split()), limit) if isinstance(value, str) else ""


def request_body(document: JsonValue, *, exact_bits: int = 63) -> bytes:
    """JSON to send. Raises Unanswered for what cannot be asked exactly as it is: see `write_question`."""
    try:
        return write_question(document, exact_bits=exact_bits)
    except ValueError as error:
        raise Unanswered(f"the question {error}") from None


def _while_refused() -> AsyncRetrying:
    from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_exponential

    return AsyncRetrying(
        retry=retry_if_exception(lambda error: isinstance(error, _NotListening)),
        stop=stop_after_attempt(_TRIES),
        wait=wait_exponential(multiplier=0.05, max=0.5),
        reraise=True,
    )


class _NotListening(Unanswered):
    """No connection was to be had: nothing was asked."""


async def _exchange(
    client: _Client, method: str, url: str, headers: Mapping[str, str], body: bytes | None, token: Secret | None
) -> Answer:
    import httpx

    client.session.cookies.clear()
    try:
        async with client.session.stream(method, url, headers=headers, content=body) as response:
            data = await _body(response)
            return _read_answer(response, data, token)
    except httpx.HTTPError as error:
        raise _no_answer(error) from None
    except (httpx.InvalidURL, httpx.StreamError, OSError) as error:
        raise Unanswered(f"it cannot be asked ({type(error).__name__})") from None


async def _body(response: httpx.Response) -> bytes:
    """The body as it was sent, of which no more is read than may be kept."""
    if response.is_redirect or 300 <= response.status_code < 400:
        raise Unanswered(f"it redirects (HTTP {response.status_code}), and that is not followed", status=300)
    if response.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise Unanswered("its answer is compressed, which was not asked for")
    data = bytearray()
    async for chunk in response.aiter_raw():
        data += chunk
        if len(data) > MAX_BODY_BYTES:
            raise Unanswered(f"its answer is longer than {MAX_BODY_BYTES} bytes")
    return bytes(data)


def _read_answer(response: httpx.Response, data: bytes, token: Secret | None) -> Answer:
    if token is not None and Redactor([token]).find(data.decode(errors="replace")):
        raise Unanswered("its answer holds our own token", status=response.status_code)
    if response.status_code != 200:
        said = _said(data)
        raise Unanswered(
            f"it answered HTTP {response.status_code}" + (f": {said}" if said else ""), status=response.status_code
        )
    media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise Unanswered("its answer is not of the type application/json")
    try:
        return Answer(read_object(data), response.headers)
    except NotReadable as error:
        raise Unanswered(f"its answer cannot be read: {error}") from None


def _said(data: bytes) -> str:
    """What an error says of itself, on one line: `message` and `code` of OPA, or a text."""
    try:
        body: Mapping[str, Any] = read_object(data)
    except NotReadable:
        text = data.decode(errors="replace")
    else:
        errors = body.get("errors")
        each = [error.get("message") for error in errors if isinstance(error, dict)] if isinstance(errors, list) else []
        text = "; ".join(str(part) for part in [body.get("message"), *each] if part)
    return _cut(" ".join("".join(c if c.isprintable() else " " for c in text[: 4 * _EXCERPT]).split()), _EXCERPT)


def _no_answer(error: httpx.HTTPError) -> Unanswered:
    """In our own words: the library's may quote what the service sent."""
    import socket

    import httpx

    if isinstance(error, httpx.TimeoutException):
        return Unanswered("no connection in time")
    chain = list(_causes(error))
    for cause in chain:
        if isinstance(cause, ConnectionRefusedError):
            return _NotListening("nothing listens there (connection refused)")
        if isinstance(cause, FileNotFoundError):
            return _NotListening("there is no such socket")
        if isinstance(cause, ssl.SSLCertVerificationError):
            return Unanswered(f"its certificate is not accepted: {cause.verify_message}")
        if isinstance(cause, ssl.SSLError) and cause.reason:
            return Unanswered(f"TLS failed: {cause.reason}")
        if isinstance(cause, socket.gaierror):
            return Unanswered("there is no address for its name")
    for cause in chain:
        if isinstance(cause, OSError) and cause.strerror:
            return Unanswered(f"the connection failed: {cause.strerror}")
    return Unanswered(f"the connection broke off, or what answers does not speak HTTP ({type(error).__name__})")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what led to it, groups included."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop(0)
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        waiting += [each.__cause__, each.__context__]
        if isinstance(each, BaseExceptionGroup):
            waiting += each.exceptions


def _state_of(*files: Path | None) -> tuple[object, ...]:
    """What changes when one of them is replaced; whether they can be read is for whoever reads them to say."""
    found: list[object] = []
    for file in files:
        try:
            status = file.stat() if file else None
        except OSError:
            status = None
        found.append(status and (status.st_ino, status.st_mtime_ns, status.st_size))
    return tuple(found)


def _read(file: Path) -> bytes:
    """A regular file of a bounded size, without ever waiting for somebody at the other end. Raises OSError."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as opened:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(0, "it is not a regular file")
        return opened.read(_MAX_TOKEN_BYTES)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."
