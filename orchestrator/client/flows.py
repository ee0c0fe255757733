"""What is done with a broker, as flows: opening a task, calling a tool, taking a credential, and ending these."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import quote

from orchestrator.client import documents
from orchestrator.client.documents import Credential, Opened, understood
from orchestrator.client.errors import (
    ApprovalPending,
    BrokerError,
    CallCancelled,
    CallFailed,
    InvalidRequest,
    NotFound,
    Unavailable,
    Unconfirmed,
)
from orchestrator.client.exchange import Ask, Flow, Patience, Pause, answered

log = logging.getLogger("orchestrator.client")

MOST_LOST = 3
"""So many credentials in a row whose answer is lost."""


def new_key() -> str:
    """A call's own name."""
    return str(uuid.uuid4())


@dataclass(slots=True)
class Call:
    """One call of a tool. `until` is the end of its task, on the monotonic clock."""

    task_id: str
    tool: str
    arguments: Mapping[str, Any]
    until: float
    make_key: Callable[[], str] = field(default=new_key, repr=False)
    key: str = field(init=False)

    def __post_init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Make another call of it, with the same arguments."""
        self.key = self.make_key()

    def ask(self) -> Ask:
        """As it is sent, each time the same."""
        path = f"/v1/tasks/{quote(self.task_id, safe='')}/tools/{quote(self.tool, safe='')}"
        return Ask("POST", path, {"arguments": dict(self.arguments)}, self.key)

    def taking(self, patience: Patience, approval_seconds: float = 0.0) -> Flow[Credential]:
        """The credential that it hands over."""
        return handed_over(self, patience, approval_seconds)

    def returning(self, held: Credential, patience: Patience) -> Flow[Unconfirmed | None]:
        """Give it back."""
        return giving_back(held.lease_id, patience)

    def abandoning(self, patience: Patience) -> Flow[None]:
        """Give back what is handed over to nobody: the caller was interrupted."""
        return abandoning(self, patience)


def opening(task_type: str, inputs: Mapping[str, Any], reason: str, patience: Patience) -> Flow[Opened]:
    """Open a task. If the answer is lost another one is opened: a task in which nothing is called holds nothing."""
    body = {"type": task_type, "inputs": dict(inputs), **({"reason": reason} if reason else {})}
    response = yield from answered(Ask("POST", "/v1/tasks", body), patience)
    return understood(response, documents.opened)


def prepared(task: Opened, until: float, tool: str, arguments: Mapping[str, Any], *, hands_over: bool) -> Call:
    """A call, not sent yet. Raises NotFound, and InvalidRequest for a tool of the other sort."""
    tools = {each.name: each for each in task.tools}
    if tool not in tools:
        raise NotFound(f"`{task.type}` has no tool `{tool[:64]}`", hint=f"it has {', '.join(tools)}")
    if tools[tool].hands_over is not hands_over:
        there = "`call`" if hands_over else "`credential` or `auth`"
        what = "an output, and no credential" if hands_over else "a credential"
        raise InvalidRequest(f"the tool `{tool}` gives {what}", hint=f"use {there} of the task")
    return Call(task.id, tool, arguments, until)


def output(call: Call, patience: Patience, approval_seconds: float = 0.0) -> Flow[dict[str, Any]]:
    """What the tool's action gave. Raises ApprovalPending after so many seconds, and BrokerError."""
    found = yield from _outcome(call, patience, approval_seconds)
    return dict(found.get("output") or {})


def handed_over(call: Call, patience: Patience, approval_seconds: float = 0.0) -> Flow[Credential]:
    """A credential. One whose answer was lost is not told again: it is given back, and another one asked for."""
    for _ in range(MOST_LOST):
        found = yield from _outcome(call, patience, approval_seconds)
        if "credential" in found:
            return documents.credential(found)
        if "lease" in found:
            yield from giving_back(found["lease"]["id"], patience)
        call.renew()
    raise Unavailable(f"the credential of `{call.tool}` was lost on the way {MOST_LOST} times")


def abandoning(call: Call, patience: Patience) -> Flow[None]:
    """Give back what a call hands over whose caller was interrupted, and does not know whether there is anything."""
    until = patience.now() + patience.closing
    pauses = patience.pauses(most=1.0)
    try:
        while patience.now() < until:
            response = yield from answered(call.ask(), patience, until=until)
            found = understood(response, _call_document)
            if "lease" in found:
                yield from giving_back(found["lease"]["id"], patience)
                return
            if found["state"] != "running":
                return
            yield Pause(next(pauses))
    except BrokerError as error:
        log.warning("it is not known whether `%s` has handed anything over: %s", call.tool, error.detail)


def giving_back(lease_id: str, patience: Patience) -> Flow[Unconfirmed | None]:
    """Give a credential back."""
    ask = Ask("DELETE", f"/v1/leases/{quote(lease_id, safe='')}")
    return (yield from ending(ask, f"the credential {lease_id}", patience))


def renewing(held: Credential, patience: Patience) -> Flow[Credential]:
    """Have a credential for longer."""
    ask = Ask("POST", f"/v1/leases/{quote(held.lease_id, safe='')}/renew")
    response = yield from answered(ask, patience)
    return understood(response, partial(documents.renewed, held))


def closing(task_id: str, reason: str, patience: Patience) -> Flow[Unconfirmed | None]:
    """Close a task, and so give back everything of it."""
    body = {"reason": reason} if reason else None
    ask = Ask("DELETE", f"/v1/tasks/{quote(task_id, safe='')}", body)
    return (yield from ending(ask, f"the task {task_id}", patience))


def ending(ask: Ask, what: str, patience: Patience) -> Flow[Unconfirmed | None]:
    """What is unconfirmed is told to the log here. Whoever leaves a block with an error has more important things."""
    until = patience.now() + patience.closing
    pauses = patience.pauses()
    why = "it takes longer than was waited for"
    try:
        while True:
            response = yield from answered(ask, patience, until=until)
            if response.status_code == 200:
                return None
            pause = next(pauses)
            if patience.now() + pause >= until:
                break
            yield Pause(pause)
    except BrokerError as error:
        why = error.detail
    hint = "it ends by itself when it expires; `orchestrator leases list --state revoking` shows what is not gone"
    found = Unconfirmed(f"the end of {what} is not confirmed: {why}", hint=hint)
    log.warning("Unconfirmed: %s", found.detail)
    return found


def _outcome(call: Call, patience: Patience, approval_seconds: float) -> Flow[Mapping[str, Any]]:
    """The answer with which a call is done, or has handed over, or is told to hold what was handed over before."""
    approved_until = patience.now() + approval_seconds
    pauses = patience.pauses()
    while True:
        response = yield from answered(call.ask(), patience, slow_until=call.until)
        found = understood(response, _call_document)
        state, now = found["state"], patience.now()
        if state in ("done", "handed_over") or "lease" in found:
            return found
        if state in ("failed", "cancelled"):
            raise _not_done(call.tool, state, found.get("error") or {})
        if state == "waiting" and now >= approved_until:
            raise ApprovalPending(
                f"`{call.tool}` waits until somebody agrees to it", approval=str(found.get("approval")), call=call
            )
        if now >= call.until + patience.away:
            raise Unavailable(f"the task is over, and the broker does not say what came of `{call.tool}`")
        pause = next(pauses)
        yield Pause(min(pause, max(0.0, approved_until - now)) if state == "waiting" else pause)


def _not_done(tool: str, state: str, error: Mapping[str, Any]) -> BrokerError:
    kind, detail = str(error.get("kind", "")), str(error.get("detail", ""))
    if state == "cancelled":
        return CallCancelled(f"`{tool}` was cancelled: {detail}", status=200, more={"kind": kind})
    return CallFailed(f"`{tool}` has failed: {detail}", status=200, more={"kind": kind})


_STATES = frozenset({"done", "handed_over", "running", "waiting", "failed", "cancelled"})


def _call_document(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """The answer of `callTool`, with all that is made use of where it should be. Raises ValueError, KeyError."""
    if document["state"] not in _STATES:
        raise ValueError
    if "credential" in document:
        documents.credential(document)
    elif "lease" in document:
        str(document["lease"]["id"])
    return document
