"""Authentication of an httpx client by the token that a tool hands over: fetched, renewed in time, and kept at home."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx

from orchestrator.client.documents import Credential
from orchestrator.client.errors import ApprovalPending, InvalidRequest
from orchestrator.client.possession import Prover
from orchestrator.clock import Clock
from orchestrator.network.origins import is_confidential, origin

_EARLY, _EARLY_PART = 10.0, 0.2
"""A token is renewed so many seconds before it expires, or when only so much of its life is left, if that is less."""

_INVALID = re.compile(r'\berror\s*=\s*"?invalid_token\b', re.IGNORECASE)
_NONCE = re.compile(r'\berror\s*=\s*"?use_dpop_nonce\b', re.IGNORECASE)


class Held(Protocol):
    """A `Handover`."""

    def open(self) -> Credential:
        """Take it, unless it is held."""
        ...

    def close(self) -> None:
        """Give it back."""
        ...


class AsyncHeld(Protocol):
    """An `AsyncHandover`."""

    async def open(self) -> Credential:
        """Take it, unless it is held."""
        ...

    async def aclose(self) -> None:
        """Give it back."""
        ...


@dataclass(frozen=True, slots=True)
class _Wanted:
    """The token is wanted. `refused` is one that the service does not take any more."""

    refused: str | None = field(default=None, repr=False)


class _BearerAuth(httpx.Auth):
    """Whether a request gets the token, and when it is sent again. A redirect to elsewhere loses it: httpx drops it."""

    def __init__(self, given_for: str, clock: Clock, key: Prover | None = None) -> None:
        if not is_confidential(given_for):
            raise ValueError("a token is sent there: the origin is to be https, or one of this machine")
        self._origin = origin(given_for)
        self._clock = clock
        self._key = key
        self._nonce = ""
        self._token = ""
        self._renew_at = 0.0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} for {self._origin}>"

    def _steps(self, request: httpx.Request) -> Generator[_Wanted | httpx.Request, Any, None]:
        if origin(str(request.url)) != self._origin:
            yield request
            return
        token = yield _Wanted()
        response = yield self._authorized(request, token)
        if not isinstance(request.stream, httpx.ByteStream):
            return  # what was streamed cannot be sent twice
        if self._has_new_nonce(response) and _says(_NONCE, response):
            response = yield self._authorized(request, token)
            self._has_new_nonce(response)
        if not self._is_refused(response):
            return
        fresh = yield _Wanted(refused=token)
        yield self._authorized(request, fresh)

    def _authorized(self, request: httpx.Request, token: str) -> httpx.Request:
        """With the token; if that is bound to a key, with a new proof (RFC 9449, 7.1)."""
        request.headers["Authorization"] = f"{'Bearer' if self._key is None else 'DPoP'} {token}"
        if self._key is not None:
            url = str(request.url)
            request.headers["DPoP"] = self._key.proof(request.method, url, token=token, nonce=self._nonce)
        return request

    def _has_new_nonce(self, response: httpx.Response) -> bool:
        """Whether the service, and nobody to whom it has led, wants another one in the next proofs (RFC 9449, 9)."""
        nonce = response.headers.get("dpop-nonce", "")
        ours = self._key is not None and origin(str(response.request.url)) == self._origin
        if not ours or not nonce or nonce == self._nonce:
            return False
        self._nonce = nonce
        return True

    def _is_refused(self, response: httpx.Response) -> bool:
        """RFC 6750, 3.1; by whom the token was sent to."""
        if response.status_code != 401 or origin(str(response.request.url)) != self._origin:
            return False
        return _says(_INVALID, response)

    def _at_hand(self, refused: str | None) -> bool:
        return bool(self._token) and self._token != refused and self._clock.monotonic() < self._renew_at

    def _keep(self, credential: Credential) -> None:
        if "token" not in credential.fields:
            raise InvalidRequest("the tool hands over no token", hint="`auth` is for tools that hand over a token")
        self._renew_at = self._clock.monotonic() + credential.ttl - min(_EARLY, credential.ttl * _EARLY_PART)
        self._token = credential.token


def _says(error: re.Pattern[str], response: httpx.Response) -> bool:
    challenges = response.headers.get_list("www-authenticate")
    return response.status_code == 401 and any(error.search(each) for each in challenges)


class TaskAuth(_BearerAuth):
    """For an httpx.Client, from `Task.auth` or `Task.dpop_auth`. Threads may use it at the same time."""

    def __init__(self, handover: Callable[[], Held], given_for: str, clock: Clock, key: Prover | None = None) -> None:
        super().__init__(given_for, clock, key)
        self._lock = threading.Lock()
        self._handover = handover
        self._current: Held | None = None

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """As httpx asks for it. Raises what `Task.credential` raises."""
        steps = self._steps(request)
        came: Any = None
        while True:
            try:
                step = steps.send(came)
            except StopIteration:
                return
            came = self._valid(step.refused) if isinstance(step, _Wanted) else (yield step)

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """It would block the event loop."""
        raise RuntimeError("an httpx.AsyncClient takes the auth of an AsyncTask")
        yield request

    def close(self) -> None:
        """Give the token back; the task does so, too, when it is closed."""
        with self._lock:
            self._drop()

    def _valid(self, refused: str | None) -> str:
        with self._lock:
            if not self._at_hand(refused):
                if self._token:
                    self._drop()  # first, so that a tool with `max_open: 1` hands over again
                if self._current is None:
                    self._current = self._handover()
                try:
                    self._keep(self._current.open())
                except ApprovalPending:  # the next request asks again for the same
                    raise
                except BaseException:
                    self._drop()
                    raise
            return self._token

    def _drop(self) -> None:
        current, self._current, self._token = self._current, None, ""
        if current is not None:
            current.close()


class AsyncTaskAuth(_BearerAuth):
    """For an httpx.AsyncClient, from `AsyncTask.auth`. Tasks of one event loop may use it at the same time."""

    def __init__(
        self, handover: Callable[[], AsyncHeld], given_for: str, clock: Clock, key: Prover | None = None
    ) -> None:
        super().__init__(given_for, clock, key)
        self._lock = asyncio.Lock()
        self._handover = handover
        self._current: AsyncHeld | None = None

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """It cannot wait."""
        raise RuntimeError("an httpx.Client takes the auth of a Task")
        yield request

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """As httpx asks for it. Raises what `AsyncTask.credential` raises."""
        steps = self._steps(request)
        came: Any = None
        while True:
            try:
                step = steps.send(came)
            except StopIteration:
                return
            came = await self._valid(step.refused) if isinstance(step, _Wanted) else (yield step)

    async def aclose(self) -> None:
        """Give the token back; the task does so, too, when it is closed."""
        async with self._lock:
            await self._drop()

    async def _valid(self, refused: str | None) -> str:
        async with self._lock:
            if not self._at_hand(refused):
                if self._token:
                    await self._drop()  # first, so that a tool with `max_open: 1` hands over again
                if self._current is None:
                    self._current = self._handover()
                try:
                    self._keep(await self._current.open())
                except ApprovalPending:  # the next request asks again for the same
                    raise
                except BaseException:
                    await self._drop()
                    raise
            return self._token

    async def _drop(self) -> None:
        current, self._current, self._token = self._current, None, ""
        if current is not None:
            await current.aclose()
