"""That a run is the call of a tool: in which task, by whom, with what."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from orchestrator.actions.handover import Recipient
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

    def called(self, run_id: str) -> TaskCalled:
        """What the task's history says of it."""
        return TaskCalled(call=run_id, tool=self.tool, arguments_digest=self.digest)

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical arguments, as `sha256:HEX`."""
        return input_digest(self.arguments)

    @property
    def asked(self) -> TaskCall:
        """What policies are told of it."""
        return TaskCall(self.task, self.arguments, self.on_behalf_of)

    def expression_context(self, agent: str) -> dict[str, Any]:
        """What expressions may refer to besides what those of every run may."""
        task = {"id": self.task, "agent": agent, "on_behalf_of": self.on_behalf_of}
        return {"call": dict(self.arguments), "task": task}


def on_record(call: Call | None) -> dict[str, Any]:
    """The fields of `RunStarted` that tell of it; none for a run that is no call."""
    return {} if call is None else {"task": call.task, "call": call.arguments, "caller": call.caller}
