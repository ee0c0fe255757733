"""The client for threads."""

from __future__ import annotations

import ssl
import time
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from orchestrator.client import flows
from orchestrator.client.auth import TaskAuth
from orchestrator.client.documents import Credential
from orchestrator.client.errors import ApprovalPending, Unconfirmed
from orchestrator.client.exchange import Flow, Patience, Pause, Send, TokenWanted
from orchestrator.client.possession import Prover
from orchestrator.client.task import TaskOfEither, one_mapping, request, safe_url, why_left
from orchestrator.client.token_exchange import Exchange as TokenCall
from orchestrator.client.token_exchange import ExchangeOfEither
from orchestrator.client.tokens import OwnToken, Token

T = TypeVar("T")


class Broker:
    """A broker, as one agent sees it. Threads may use it at the same time.

    `token` is what the agent shows: a str, a function that returns one, the path of a file, or None where `tls` has
    the agent's certificate. With `strict`, leaving a block raises Unconfirmed, which else goes to the log alone.
    Raises ValueError for a URL that is neither https nor of this machine.
    """

    def __init__(
        self,
        url: str,
        token: Token | None,
        *,
        tls: ssl.SSLContext | None = None,
        patience: Patience | None = None,
        strict: bool = False,
    ) -> None:
        self._patience = patience or Patience()
        self._token = OwnToken(token, self._patience.clock)
        self._http = httpx.Client(base_url=safe_url(url), verify=tls or True, trust_env=False)
        self._open_tasks: dict[str, Task] = {}
        self.strict = strict

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the tasks that are still open, and the connections."""
        try:
            for each in list(self._open_tasks.values()):
                each.close()
        finally:
            self._http.close()

    def task(self, task_type: str, inputs: Mapping[str, Any] | None = None, /, **more: Any) -> Task:
        """A task, which is opened when it is entered. Inputs by name, or as a mapping."""
        return Task(self, self._patience, task_type, one_mapping(inputs, more))

    def _carry_out(self, flow: Flow[T]) -> T:
        with closing(flow):
            try:
                wanted = next(flow)
                while True:
                    try:
                        came = self._done(wanted)
                    except httpx.TransportError as error:
                        wanted = flow.throw(error)
                    else:
                        wanted = flow.send(came)
            except StopIteration as end:
                result: T = end.value
                return result

    def _done(self, wanted: Send | Pause | TokenWanted) -> Any:
        if isinstance(wanted, Send):
            return self._http.send(request(self._http, wanted))
        if isinstance(wanted, Pause):
            return time.sleep(wanted.seconds)
        if self._token.given is None:
            return None
        kept = self._token.kept(wanted.refused)
        if kept is not None:
            return kept
        asked = self._token.ask()
        if not isinstance(asked, str):
            raise TypeError("the function for the token of a Broker returns a str; an AsyncBroker awaits")
        return self._token.keep(asked)


class Task(TaskOfEither):
    """An open task. Leaving it closes it, and so gives everything back, also after an error."""

    def __init__(self, broker: Broker, patience: Patience, task_type: str, inputs: Mapping[str, Any]) -> None:
        super().__init__(patience, task_type, inputs)
        self._broker = broker

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(why_left(error), raising=error is None)

    def open(self) -> Self:
        """Open it. Raises InvalidRequest, NotAllowed, Denied, CutOff, Unauthenticated, Unavailable."""
        if self._opened is None:
            opened = self._broker._carry_out(flows.opening(self._type, self._inputs, self._reason, self._patience))
            self._begun(opened)
            self._broker._open_tasks[opened.id] = self
        return self

    def close(self, reason: str = "") -> None:
        """Close it, if it is open. The reason is recorded."""
        self._close(reason, raising=True)

    def call(self, tool: str, arguments: Mapping[str, Any] | None = None, /, **more: Any) -> dict[str, Any]:
        """Call a tool, and wait for its output. Arguments by name, or as a mapping.

        It is never carried out twice. Raises ApprovalPending, Denied, BudgetSpent, TaskClosed, InvalidRequest,
        NotFound, CutOff, CallFailed, CallCancelled, and what any request raises.
        """
        return self._output(self._prepared(tool, one_mapping(arguments, more), hands_over=False), 0.0)

    def credential(self, tool: str, arguments: Mapping[str, Any] | None = None, /, **more: Any) -> Handover:
        """A credential that a tool hands over, once it is entered; leaving it gives it back."""
        return Handover(self._broker, self._prepared(tool, one_mapping(arguments, more), hands_over=True))

    def renew(self, credential: Credential) -> Credential:
        """Have a credential for its `ttl` from now, as far as its tool, the task, the policy and Vault let it.

        The secrets stay as they are; `expires_at` says what came of it. Raises NotRenewed, Denied, NotFound.
        """
        return self._broker._carry_out(flows.renewing(credential, self._patience))

    def auth(self, tool: str, origin: str, arguments: Mapping[str, Any] | None = None, /, **more: Any) -> TaskAuth:
        """For an httpx.Client: the token that a tool hands over, sent to this origin and no other."""
        given = one_mapping(arguments, more)
        return TaskAuth(lambda: self.credential(tool, given), origin, self._patience.clock)

    def exchange(self, tool: str, arguments: Mapping[str, Any] | None = None, /, **more: Any) -> Exchange:
        """The token that a tool hands over, by token exchange (RFC 8693), once it is entered; leaving it revokes it.

        Before that: `for_scope`, `for_audience` and `bound_to` say what is wanted of it.
        """
        return Exchange(self._broker, self._exchange(tool, one_mapping(arguments, more)))

    def dpop_auth(
        self, tool: str, origin: str, key: Prover, arguments: Mapping[str, Any] | None = None, /, **more: Any
    ) -> TaskAuth:
        """As `auth`, but the token is bound to the key, and each request has a proof of it (RFC 9449)."""
        given = one_mapping(arguments, more)
        return TaskAuth(lambda: self.exchange(tool, given).bound_to(key), origin, self._patience.clock, key)

    def _output(self, call: flows.Call, seconds: float) -> dict[str, Any]:
        try:
            return self._broker._carry_out(flows.output(call, self._patience, seconds))
        except ApprovalPending as pending:
            pending.again = partial(self._output, call)
            raise

    def _close(self, reason: str, *, raising: bool) -> None:
        if self._opened is None or self._broker._open_tasks.pop(self._opened.id, None) is None:
            return
        found = self._broker._carry_out(flows.closing(self._opened.id, reason, self._patience))
        _raise_if(found, raising and self._broker.strict)


class Handover:
    """A credential for as long as a block lasts."""

    def __init__(self, broker: Broker, call: flows.Call) -> None:
        self._broker = broker
        self._call = call
        self.credential: Credential | None = None

    def __enter__(self) -> Credential:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(raising=error is None)

    def open(self) -> Credential:
        """Take it. Raises what `Task.call` raises."""
        return self.credential or self._take(0.0)

    def close(self) -> None:
        """Give it back, if it is held."""
        self._close(raising=True)

    def _take(self, seconds: float) -> Credential:
        patience = self._broker._patience
        try:
            self.credential = self._broker._carry_out(self._call.taking(patience, seconds))
        except ApprovalPending as pending:
            pending.again = self._open_within
            raise
        except (KeyboardInterrupt, SystemExit):  # what was on its way is given back
            self._broker._carry_out(self._call.abandoning(patience))
            raise
        return self.credential

    def _open_within(self, seconds: float) -> Self:
        if self.credential is None:
            self._take(seconds)
        return self

    def _close(self, *, raising: bool) -> None:
        held, self.credential = self.credential, None
        if held is not None:
            found = self._broker._carry_out(self._call.returning(held, self._broker._patience))
            self._call.renew()
            _raise_if(found, raising and self._broker.strict)


class Exchange(ExchangeOfEither, Handover):
    """A token for as long as a block lasts, by the endpoint of the standard. Say first what is wanted of it."""

    def __init__(self, broker: Broker, call: TokenCall) -> None:
        super().__init__(broker, call)
        self._wanted = call


def _raise_if(found: Unconfirmed | None, wanted: bool) -> None:
    if found is not None and wanted:
        raise found
