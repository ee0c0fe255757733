"""That a run is the call of a tool: in which task, by whom, with what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from orchestrator.actions.handover import Recipient
from orchestrator.grants.scope import Scope
from orchestrator.grants.wish import NO_WISH, Wish
from orchestrator.jsontypes import JsonObject
from orchestrator.ledger.task_events import TaskCalled
from orchestrator.ledger.types import CallLimits
from orchestrator.policy.types import TaskCall, input_digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call. `context` is the task's, as it was evaluated when that was opened; nothing may outlive `until`."""

    task: str
    tool: str
    arguments: JsonObject
    context: JsonObject
    caller: JsonObject
    """As `TaskOpened` has it."""
    on_behalf_of: str
    until: datetime
    limits: CallLimits
    recipient: Recipient | None = None
    """Who takes the credential of a tool that hands one over."""
    wish: Wish = NO_WISH
    """What is wanted of the token that it hands over."""

    def called(self, run_id: str) -> TaskCalled:
        """What the task's history says of it."""
        return TaskCalled(call=run_id, tool=self.tool, arguments_digest=self.digest)

    @property
    def digest(self) -> str:
        """What makes it the same call: its arguments, and what is wanted of its token."""
        return call_digest(self.arguments, self.wish.as_json())

    @property
    def asked(self) -> TaskCall:
        """What policies are told of it."""
        return TaskCall(self.task, self.arguments, self.on_behalf_of)

    def asked_for(self, scopes: tuple[Scope, ...]) -> tuple[Scope, ...]:
        """The grants of its tool with what is wanted of them. Raises ValueError for what is more, or cannot be."""
        return scopes if self.wish == NO_WISH else tuple(self.wish.applied(each) for each in scopes)

    def expression_context(self, agent: str) -> dict[str, Any]:
        """What expressions may refer to besides what those of every run may."""
        task = {"id": self.task, "agent": agent, "on_behalf_of": self.on_behalf_of}
        return {"call": dict(self.arguments), "task": task}


def on_record(call: Call | None) -> dict[str, Any]:
    """The fields of `RunStarted` that tell of it; none for a run that is no call."""
    if call is None:
        return {}
    return {"task": call.task, "call": call.arguments, "caller": call.caller, "token": call.wish.as_json()}


def call_digest(arguments: JsonObject, token: JsonObject) -> str:
    """SHA-256 of the canonical arguments, and of what is wanted of a token, as `sha256:HEX`."""
    return input_digest({"arguments": arguments, "token": token} if token else arguments)


def recorded_digest(started: JsonObject) -> str:
    """The digest of a call by its first event; empty for what is none."""
    arguments, token = started.get("call"), started.get("token") or {}
    known = isinstance(arguments, Mapping) and isinstance(token, Mapping)
    return call_digest(arguments, token) if known else ""  # type: ignore[arg-type]  # both are, as has been looked
