"""The one question that is asked before a step gets credentials, and its answer.

Shapes: `docs` of OPA's Data API (`input` and `result`) and DESIGN of this project agree on them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from orchestrator.grants.scope import Scope
from orchestrator.jsontypes import JsonObject, JsonValue


@dataclass(frozen=True, slots=True)
class PolicyRequest:
    """Everything a policy may decide on. Nothing in it is secret; `secret: true` inputs are left out.

    `action_view` is what the action says of itself in public: a Slack channel, an HTTP method and
    origin, the verbs of a SQL statement. `time` is None in a dry run.
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
    time: datetime | None = None

    def as_json(self) -> dict[str, JsonValue]:
        """The `input` document."""
        return {
            "workflow": {"name": self.workflow, "digest": self.workflow_digest},
            "run": {"id": self.run, "trigger": self.trigger, "inputs": self.inputs},
            "context": self.context,
            "step": {"id": self.step, "attempt": self.attempt},
            "agent": self.agent,
            "action": {**self.action_view, "name": self.action},
            "grants": [grant.as_json() for grant in self.grants],  # type: ignore[misc]  # objects of JSON scalars
            "time": self.time.isoformat() if self.time else None,
        }

    def digest(self) -> str:
        """SHA-256 of the canonical `input` document, as `sha256:HEX`."""
        text = json.dumps(self.as_json(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return "sha256:" + hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


@dataclass(frozen=True, slots=True)
class Obligations:
    """What an allowing decision demands. An obligation that is not known here turns the answer into a denial.

    `max_ttl` in seconds caps the TTL of every grant of the step.
    """

    max_ttl: int | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer. `revision` identifies the policies that gave it; `engine` is the engine's name."""

    allow: bool
    reasons: tuple[str, ...]
    engine: str
    revision: str
    obligations: Obligations = field(default_factory=Obligations)


class PolicyEngine(Protocol):
    """Decides. Anything but a well-formed allowing answer is a denial; it never raises for a bad policy answer."""

    @property
    def name(self) -> str:
        """What the ledger calls it."""
        ...

    async def decide(self, request: PolicyRequest) -> Decision:
        """Answer one question. Called once for each attempt, from the event loop; it may wait for a service."""
        ...


def decision_from(answer: object, *, engine: str, revision: str) -> Decision:
    """Read a policy's raw answer, failing closed: what is not exactly understood is a denial."""

    def denied(reason: str) -> Decision:
        return Decision(False, (reason,), engine, revision)

    if not isinstance(answer, Mapping):
        return denied("the policy gave no decision (undefined)")
    allow = answer.get("allow")
    reasons = answer.get("reasons", [])
    obligations = answer.get("obligations", {})
    if not isinstance(allow, bool):
        return denied("the policy's answer has no boolean `allow`")
    if unknown := sorted(map(str, set(answer) - {"allow", "reasons", "obligations"})):
        return denied(f"the policy's answer has parts that are not understood: {', '.join(unknown)}")
    if not isinstance(reasons, list | tuple | set | frozenset) or not all(isinstance(text, str) for text in reasons):
        return denied("the policy's `reasons` are not a list of strings")
    if isinstance(reasons, set | frozenset):
        reasons = sorted(reasons)
    if not isinstance(obligations, Mapping):
        return denied("the policy's `obligations` are not an object")
    if unknown := sorted(map(str, set(obligations) - {"max_ttl"})):
        return denied(f"the policy demands what this version cannot do: {', '.join(unknown)}")
    max_ttl = obligations.get("max_ttl")
    if "max_ttl" in obligations and (isinstance(max_ttl, bool) or not isinstance(max_ttl, int) or max_ttl <= 0):
        return denied("the policy's obligation `max_ttl` is not a positive whole number of seconds")
    if not allow and not reasons:
        reasons = ["the policy does not allow it"]
    return Decision(allow, tuple(reasons), engine, revision, Obligations(max_ttl))
