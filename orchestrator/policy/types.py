"""The one question that is asked before a step gets credentials, its answer, and who answers.

The documents are described in `orchestrator.policy.documents`, and in DESIGN of this project.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol, runtime_checkable

from orchestrator.grants.scope import Scope
from orchestrator.jsontypes import JsonObject, JsonValue
from orchestrator.policy.obligations import SUPPORTED, Obligations
from orchestrator.step_names import instance_of

VERSION = 1
"""Of both documents. It is raised where what is there already gets another meaning, not where something is added."""


class Question(StrEnum):
    """What is asked: whether the agent may take the step at all, before anything is evaluated, or everything."""

    ADMIT = "admit"
    DECISION = "decision"


@dataclass(frozen=True, slots=True)
class TaskCall:
    """That an agent calls a tool in a task. `arguments` are what it chose; `on_behalf_of` is empty for itself."""

    task: str
    arguments: JsonObject
    on_behalf_of: str = ""

    def as_json(self) -> JsonObject:
        """The member `task` of the `input` document."""
        return {"id": self.task, "call": self.arguments, "on_behalf_of": self.on_behalf_of}


@dataclass(frozen=True, slots=True)
class PolicyRequest:
    """Everything a policy may decide on. Nothing in it is secret; `secret: true` inputs are left out.

    `action_view` is what the action says of itself in public: a Slack channel, an HTTP method and
    origin, the verbs of a SQL statement. `timeout` is the step's, in seconds; `reason` what whoever started the run
    gave as one; `time` is None in a dry run.
    """

    workflow: str
    workflow_digest: str
    run: str
    trigger: str
    inputs: JsonObject
    context: JsonObject
    step: str
    attempt: int
    agent: str
    action: str
    action_view: JsonObject
    grants: Sequence[Scope]
    timeout: int = 0
    reason: str = ""
    time: datetime | None = None
    approvals: tuple[JsonObject, ...] = ()
    """Who has agreed to exactly this question: `{"by", "at", "comment"}` each."""
    index: int | None = None
    """Of a step that is carried out for each item of a list: for which, from 0."""
    call: TaskCall | None = None
    """Where it is no step of a run, but a tool that an agent calls."""

    @property
    def step_name(self) -> str:
        """What the step is called in the record, with the item that it is for."""
        return self.step if self.index is None else instance_of(self.step, self.index)

    def as_json(self) -> dict[str, JsonValue]:
        """The `input` document."""
        return {
            **({"task": self.call.as_json()} if self.call else {}),
            "version": VERSION,
            "workflow": {"name": self.workflow, "digest": self.workflow_digest},
            "run": {"id": self.run, "trigger": self.trigger, "reason": self.reason, "inputs": self.inputs},
            "context": self.context,
            "step": {
                "id": self.step,
                "attempt": self.attempt,
                "timeout": self.timeout,
                **({} if self.index is None else {"index": self.index}),
            },
            "agent": self.agent,
            "action": {**self.action_view, "name": self.action},
            "grants": [grant.as_json() for grant in self.grants],  # type: ignore[misc]  # objects of JSON scalars
            "time": self.time.isoformat() if self.time else None,
            "approvals": self.approvals,
            "supported_obligations": SUPPORTED,
        }


_EACH_TIME = ("time", "approvals", "supported_obligations")


def subject_of(document: JsonObject) -> str:
    """What people agree to, as `sha256:HEX`: the `input` document without what changes each time that it is asked."""
    kept = {name: value for name, value in document.items() if name not in _EACH_TIME}
    step = kept.get("step")
    if isinstance(step, Mapping):
        kept["step"] = {name: value for name, value in step.items() if name != "attempt"}
    return input_digest(kept)


def input_digest(document: JsonObject) -> str:
    """SHA-256 of the canonical `input` document, as `sha256:HEX`."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return "sha256:" + hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer. `revision` identifies the policies that gave it; `engine` is the engine's name.

    `answer` is what the engine said, whole, where that was JSON; `decision_id` the engine's own name for it.
    """

    allow: bool
    reasons: tuple[str, ...]
    engine: str
    revision: str
    obligations: Obligations = field(default_factory=Obligations)
    answer: JsonValue = None
    decision_id: str = ""


class PolicyEngine(Protocol):
    """Decides. Anything but a well-formed allowing answer is a denial; it never raises for a bad policy answer."""

    @property
    def name(self) -> str:
        """What the ledger calls it."""
        ...

    async def decide(self, request: PolicyRequest) -> Decision:
        """Answer one question. Called once for each attempt, from the event loop; it may wait for a service."""
        ...


@runtime_checkable
class ConnectedEngine(Protocol):
    """A policy engine that asks a service: a plan does not ask it unless told to, and it has to be closed."""

    async def aclose(self) -> None:
        """Close its connections; it may be asked again, in this or another event loop."""
        ...
