"""The client for asyncio. What takes back is shielded: a cancellation waits for it, and is raised then."""

from __future__ import annotations

import asyncio
import inspect
import ssl
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from orchestrator.client import flows
from orchestrator.client.auth import AsyncTaskAuth
from orchestrator.client.documents import Credential
from orchestrator.client.errors import ApprovalPending, Unconfirmed
from orchestrator.client.exchange import Flow, Patience, Pause, Send, TokenWanted
from orchestrator.client.possession import Prover
from orchestrator.client.task import TaskOfEither, one_mapping, request, safe_url, why_left
from orchestrator.client.token_exchange import Exchange as TokenCall
from orchestrator.client.token_exchange import ExchangeOfEither
from orchestrator.client.tokens import AsyncToken, OwnToken
from orchestrator.network.http_client import ClosingTransport
from orchestrator.uninterrupted import to_the_end

T = TypeVar("T")


class AsyncBroker:
    """As Broker, for asyncio. The function for the token may be a coroutine function; any other runs in a thread."""

    def __init__(
        self,
        url: str,
        token: AsyncToken | None,
        *,
        tls: ssl.SSLContext | None = None,
        patience: Patience | None = None,
        strict: bool = False,
    ) -> None:
        self._patience = patience or Patience()
        self._token = OwnToken(token, self._patience.clock)
        transport = ClosingTransport(verify=tls or True, trust_env=False)
        self._http = httpx.AsyncClient(base_url=safe_url(url), transport=transport, trust_env=False)
        self._open_tasks: dict[str, AsyncTask] = {}
        self.strict = strict

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the tasks that are still open, and the connections."""
        try:
            for each in list(self._open_tasks.values()):
                await each.aclose()
        finally:
            await to_the_end(self._http.aclose())

    def task(self, task_type: str, inputs: Mapping[str, Any] | None = None, /, **more: Any) -> AsyncTask:
        """A task, which is opened when it is entered. Inputs by name, or as a mapping."""
        return AsyncTask(self, self._patience, task_type, one_mapping(inputs, more))

    async def _carry_out(self, flow: Flow[T]) -> T:
        with closing(flow):
            try:
                wanted = next(flow)
                while True:
                    try:
                        came = await self._done(wanted)
                    except httpx.TransportError as error:
                        wanted = flow.throw(error)
                    else:
                        wanted = flow.send(came)
            except StopIteration as end:
                result: T = end.value
                return result

    async def _done(self, wanted: Send | Pause | TokenWanted) -> Any:
        if isinstance(wanted, Send):
            return await self._http.send(request(self._http, wanted))
        if isinstance(wanted, Pause):
            return await asyncio.sleep(wanted.seconds)
        if self._token.given is None:
            return None
        kept = self._token.kept(wanted.refused)
        if kept is not None:
            return kept
        if inspect.iscoroutinefunction(self._token.given):
            asked = self._token.ask()
        else:
            asked = await asyncio.to_thread(self._token.ask)
        return self._token.keep(asked if isinstance(asked, str) else await asked)


class AsyncTask(TaskOfEither):
    """As Task, for asyncio."""

    def __init__(self, broker: AsyncBroker, patience: Patience, task_type: str, inputs: Mapping[str, Any]) -> None:
        super().__init__(patience, task_type, inputs)
        self._broker = broker

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close(why_left(error), raising=error is None)

    async def open(self) -> Self:
        """Open it. Raises InvalidRequest, NotAllowed, Denied, CutOff, Unauthenticated, Unavailable."""
        if self._opened is None:
            flow = flows.opening(self._type, self._inputs, self._reason, self._patience)
            opened = await self._broker._carry_out(flow)
            self._begun(opened)
            self._broker._open_tasks[opened.id] = self
        return self

    async def aclose(self, reason: str = "") -> None:
        """Close it, if it is open. The reason is recorded."""
        await self._close(reason, raising=True)

    async def call(self, tool: str, arguments: Mapping[str, Any] | None = None, /, **more: Any) -> dict[str, Any]:
        """As Task.call. If it is cancelled the action goes on until the task is closed."""
        return await self._output(self._prepared(tool, one_mapping(arguments, more), hands_over=False), 0.0)

    def credential(self, tool: str, arguments: Mapping[str, Any] | None = None, /, **more: Any) -> AsyncHandover:
        """A credential that a tool hands over, once it is entered; leaving it gives it back."""
        return AsyncHandover(self._broker, self._prepared(tool, one_mapping(arguments, more), hands_over=True))

    async def renew(self, credential: Credential) -> Credential:
        """As Task.renew."""
        return await self._broker._carry_out(flows.renewing(credential, self._patience))

    def auth(self, tool: str, origin: str, arguments: Mapping[str, Any] | None = None, /, **more: Any) -> AsyncTaskAuth:
        """For an httpx.AsyncClient: the token that a tool hands over, sent to this origin and no other."""
        given = one_mapping(arguments, more)
        return AsyncTaskAuth(lambda: self.credential(tool, given), origin, self._patience.clock)

    def exchange(self, tool: str, arguments: Mapping[str, Any] | None = None, /, **more: Any) -> AsyncExchange:
        """As Task.exchange."""
        return AsyncExchange(self._broker, self._exchange(tool, one_mapping(arguments, more)))

    def dpop_auth(
        self, tool: str, origin: str, key: Prover, arguments: Mapping[str, Any] | None = None, /, **more: Any
    ) -> AsyncTaskAuth:
        """As Task.dpop_auth, for an httpx.AsyncClient."""
        given = one_mapping(arguments, more)
        return AsyncTaskAuth(lambda: self.exchange(tool, given).bound_to(key), origin, self._patience.clock, key)

    async def _output(self, call: flows.Call, seconds: float) -> dict[str, Any]:
        try:
            return await self._broker._carry_out(flows.output(call, self._patience, seconds))
        except ApprovalPending as pending:
            pending.again = partial(self._output, call)
            raise

    async def _close(self, reason: str, *, raising: bool) -> None:
        if self._opened is None or self._broker._open_tasks.pop(self._opened.id, None) is None:
            return
        flow = flows.closing(self._opened.id, reason, self._patience)
        found = await to_the_end(self._broker._carry_out(flow))
        _raise_if(found, raising and self._broker.strict)


class AsyncHandover:
    """As Handover, for asyncio."""

    def __init__(self, broker: AsyncBroker, call: flows.Call) -> None:
        self._broker = broker
        self._call = call
        self.credential: Credential | None = None

    async def __aenter__(self) -> Credential:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close(raising=error is None)

    async def open(self) -> Credential:
        """Take it. Raises what `AsyncTask.call` raises."""
        return self.credential or await self._take(0.0)

    async def aclose(self) -> None:
        """Give it back, if it is held."""
        await self._close(raising=True)

    async def _take(self, seconds: float) -> Credential:
        patience = self._broker._patience
        try:
            self.credential = await self._broker._carry_out(self._call.taking(patience, seconds))
        except ApprovalPending as pending:
            pending.again = self._open_within
            raise
        except asyncio.CancelledError:  # what was on its way is given back
            await to_the_end(self._broker._carry_out(self._call.abandoning(patience)))
            raise
        return self.credential

    async def _open_within(self, seconds: float) -> Self:
        if self.credential is None:
            await self._take(seconds)
        return self

    async def _close(self, *, raising: bool) -> None:
        held, self.credential = self.credential, None
        if held is not None:
            found = await to_the_end(self._broker._carry_out(self._call.returning(held, self._broker._patience)))
            self._call.renew()
            _raise_if(found, raising and self._broker.strict)


class AsyncExchange(ExchangeOfEither, AsyncHandover):
    """As Exchange, for asyncio."""

    def __init__(self, broker: AsyncBroker, call: TokenCall) -> None:
        super().__init__(broker, call)
        self._wanted = call


def _raise_if(found: Unconfirmed | None, wanted: bool) -> None:
    if found is not None and wanted:
        raise found
