"""The session policy of an `aws` grant: what of the role's permissions is left to one session.

A session has what both its role and this policy allow (IAM User Guide, "Session policies"). The same grant gives the
same text, on every machine and in every release.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from orchestrator.grants.aws.patterns import ENDS

LONGEST_POLICY = 2048
"""Characters of `Policy` in a request to STS (STS API Reference, AssumeRole)."""

SHORTEST_SESSION, LONGEST_SESSION = 900, 12 * 3600
"""Seconds; a role's own maximum is an hour unless an admin raises it."""

_ENDED = "2026-01-01T00:00:00Z"
"""As long as any other moment."""

Conditions = Mapping[str, Mapping[str, Sequence[str]]]


@dataclass(frozen=True, slots=True)
class SessionPolicy:
    """What is declared, without the moment at which a session's use ends."""

    actions: tuple[str, ...]
    resources: tuple[str, ...]
    conditions: tuple[tuple[str, str, tuple[str, ...]], ...] = ()
    """Operator, key and values."""
    wildcards: tuple[str, ...] = ()
    """Where the grant says that it is broad. Nothing of the text depends on it."""

    @property
    def text(self) -> str:
        """The policy as JSON."""
        return self._text(None)

    @property
    def digest(self) -> str:
        """32 hexadecimal digits that name what the policy allows."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:32]

    @property
    def length(self) -> int:
        """In characters, as it is sent."""
        return len(self._text(_ENDED))

    def as_json(self) -> dict[str, object]:
        """What policies, people and the ledger see of it."""
        parts: dict[str, object] = {"actions": list(self.actions), "resources": list(self.resources)}
        if self.conditions:
            parts["conditions"] = self._conditions()
        if self.wildcards:
            parts["wildcards"] = list(self.wildcards)
        return {**parts, "policy": self.digest}

    def describe(self) -> str:
        """For a terminal: `s3:GetObject on arn:aws:s3:::reports/7/* if Null aws:userid false (policy 3f...)`."""
        limits = [f"{operator} {key} {', '.join(values)}" for operator, key, values in self.conditions]
        text = f"{', '.join(self.actions)} on {', '.join(self.resources)}"
        return (f"{text} if {' and '.join(limits)}" if limits else text) + f" (policy {self.digest})"

    def until(self, moment: datetime) -> str:
        """The policy with which the session is good for nothing from this moment on.

        AWS has no session of less than 15 minutes, and none can be ended singly: so its permissions end.
        """
        return self._text(moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))

    def _conditions(self) -> dict[str, dict[str, Any]]:
        conditions: dict[str, dict[str, Any]] = {}
        for operator, key, values in self.conditions:
            conditions.setdefault(operator, {})[key] = _one_or_many(values)
        return conditions

    def _text(self, ends: str | None) -> str:
        conditions = self._conditions()
        if ends is not None:
            conditions.setdefault(ENDS[0], {})[ENDS[1]] = ends
        statement: dict[str, Any] = {
            "Effect": "Allow",
            "Action": _one_or_many(self.actions),
            "Resource": _one_or_many(self.resources),
        }
        if conditions:
            statement["Condition"] = {
                operator: dict(sorted(keys.items())) for operator, keys in sorted(conditions.items())
            }
        return json.dumps({"Version": "2012-10-17", "Statement": [statement]}, separators=(",", ":"))


def compile_policy(
    actions: Sequence[str], resources: Sequence[str], conditions: Conditions, wildcards: Sequence[str] = ()
) -> SessionPolicy:
    """The policy, in which order and repetition play no part."""
    return SessionPolicy(
        tuple(sorted(set(actions))),
        tuple(sorted(set(resources))),
        tuple(
            (operator, key, tuple(sorted(set(values))))
            for operator, keys in sorted(conditions.items())
            for key, values in sorted(keys.items())
        ),
        tuple(sorted(set(wildcards))),
    )


def policy_from_json(recorded: Mapping[str, Any]) -> SessionPolicy:
    """The policy that `as_json` recorded."""
    return compile_policy(
        recorded.get("actions", ()),
        recorded.get("resources", ()),
        {
            operator: {key: [values] if isinstance(values, str) else values for key, values in keys.items()}
            for operator, keys in recorded.get("conditions", {}).items()
        },
        recorded.get("wildcards", ()),
    )


def _one_or_many(values: Sequence[str]) -> object:
    return values[0] if len(values) == 1 else list(values)
