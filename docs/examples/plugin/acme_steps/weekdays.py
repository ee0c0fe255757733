"""`acme-weekdays`: the Rego policies, and nothing at weekends."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.policy.engines.rego.engine import RegoEngine
from orchestrator.policy.types import Decision, PolicyEngine, PolicyRequest

SATURDAY = 5


@dataclass(frozen=True, slots=True)
class WeekdaysEngine:
    """A denial stays one; an allowance holds from Monday to Friday (UTC), and in a dry run, which has no time."""

    policies: PolicyEngine
    name: str = "acme-weekdays"

    @classmethod
    def from_directory(cls, path: Path) -> WeekdaysEngine:
        """Raises UsageError where the policies are not valid."""
        return cls(RegoEngine.from_directory(path))

    async def decide(self, request: PolicyRequest) -> Decision:
        """Never raises for what a policy says."""
        decision = await self.policies.decide(request)
        if decision.allow and request.time is not None and request.time.weekday() >= SATURDAY:
            return replace(decision, allow=False, reasons=("nothing runs at weekends",), engine=self.name)
        return replace(decision, engine=self.name)
