"""What is the same in a task of either client: what was asked for, and what the broker said when it was opened."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Self

import httpx

from orchestrator.client import flows
from orchestrator.client.documents import Opened, Tool
from orchestrator.client.errors import InvalidRequest
from orchestrator.client.exchange import Patience, Send
from orchestrator.client.token_exchange import Exchange
from orchestrator.network.origins import is_confidential


class TaskOfEither:
    """A task: open once it is entered. Names of inputs and arguments cannot collide with any of ours."""

    def __init__(self, patience: Patience, task_type: str, inputs: Mapping[str, Any]) -> None:
        self._patience = patience
        self._type = task_type
        self._inputs = inputs
        self._reason = ""
        self._opened: Opened | None = None
        self._until = 0.0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._type} {self._opened.id if self._opened else 'not open'}>"

    def because(self, reason: str) -> Self:
        """Say why it is opened; policies see it, and it is recorded. Before it is opened."""
        self._reason = reason
        return self

    @property
    def id(self) -> str:
        """Its id at the broker, also in the ledger."""
        return self._is_open().id

    @property
    def agent(self) -> str:
        """Who the broker says that calls."""
        return self._is_open().agent

    @property
    def on_behalf_of(self) -> str:
        """For whom the agent acts; empty where it acts for itself."""
        return self._is_open().on_behalf_of

    @property
    def deadline(self) -> datetime:
        """When it ends in any case, by the broker's clock."""
        return self._is_open().deadline

    @property
    def tools(self) -> tuple[Tool, ...]:
        """What can be called in it."""
        return self._is_open().tools

    def _begun(self, opened: Opened) -> None:
        self._opened = opened
        self._until = self._patience.now() + (opened.deadline - opened.opened_at).total_seconds()

    def _is_open(self) -> Opened:
        if self._opened is None:
            raise RuntimeError("the task is not open: enter it with `with`, or call `open`")
        return self._opened

    def _prepared(self, tool: str, given: Mapping[str, Any], *, hands_over: bool) -> flows.Call:
        return flows.prepared(self._is_open(), self._until, tool, given, hands_over=hands_over)

    def _exchange(self, tool: str, given: Mapping[str, Any]) -> Exchange:
        call = self._prepared(tool, given, hands_over=True)
        return Exchange(call.task_id, call.tool, call.arguments, call.until)


def one_mapping(given: Mapping[str, Any] | None, named: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs or arguments as a mapping, by name, or both. Raises TypeError where one is given twice."""
    given = given or {}
    if twice := sorted(given.keys() & named.keys()):
        raise TypeError(f"given twice: {', '.join(twice)}")
    return {**given, **named}


def safe_url(url: str) -> str:
    """A broker's URL. Raises ValueError where others could read what is sent to it."""
    if not is_confidential(url):
        raise ValueError("credentials come from there: the URL is to be https, or one of this machine")
    return url.rstrip("/")


def why_left(error: BaseException | None) -> str:
    """For the record. Of an error its name alone: its text may hold anything."""
    return "" if error is None else f"left with {type(error).__name__}"


def request(http: httpx.Client | httpx.AsyncClient, send: Send) -> httpx.Request:
    """As httpx sends it. Raises InvalidRequest where the agent has no token to exchange."""
    ask, headers = send.ask, send.headers()
    if ask.form is None:
        return http.build_request(ask.method, ask.path, json=ask.body, headers=headers, timeout=send.seconds)
    form = dict(ask.form)
    if ask.is_exchange:
        if send.token is None:
            raise InvalidRequest("an exchange needs a token of the agent's", hint="a certificate alone will not do")
        form["subject_token"] = send.token
    made = http.build_request(ask.method, ask.path, data=form, headers=headers, timeout=send.seconds)
    if ask.prover is not None:
        made.headers["DPoP"] = ask.prover.proof(ask.method, str(made.url))
    return made
