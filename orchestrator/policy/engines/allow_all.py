"""The engine that allows everything. It is never a default: somebody has to ask for it by name."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.policy.types import Decision, PolicyRequest

_REASON = "no policy was asked: the engine `allow-all` was chosen"


@dataclass(frozen=True, slots=True)
class AllowAllEngine:
    """For trying things out. The ledger keeps, with every decision, that nothing was decided."""

    name: str = "allow-all"
    revision: str = "none"

    async def decide(self, request: PolicyRequest) -> Decision:
        """Allow, and say that nobody looked."""
        return Decision(True, (_REASON,), self.name, self.revision)
