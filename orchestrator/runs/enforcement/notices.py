"""Telling whoever the policy wants told, before anything of a step begins."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.errors import OrchestratorError, PolicyDenied
from orchestrator.jsontypes import JsonObject
from orchestrator.ledger.events import Notified
from orchestrator.network.webhooks import Webhooks
from orchestrator.policy.obligations import Notice
from orchestrator.policy.types import Decision


@dataclass(frozen=True, slots=True)
class Notices:
    """For one attempt at a step."""

    notifier: Webhooks
    run_id: str
    workflow: str
    agent: str
    step: str
    attempt: int

    async def tell(self, decision: Decision) -> tuple[Notified, ...]:
        """Tell everybody whom the decision wants told, at once; what came of it."""
        numbered = enumerate(decision.obligations.notify, 1)
        return tuple(
            await asyncio.gather(*(self._delivered(each, number, decision.allow) for number, each in numbered))
        )

    async def _delivered(self, notice: Notice, number: int, allow: bool) -> Notified:
        about: JsonObject = {
            "id": f"{self.run_id}/{self.step}/{self.attempt}/{number}",
            "run": self.run_id,
            "workflow": self.workflow,
            "step": self.step,
            "attempt": self.attempt,
            "agent": self.agent,
            "allow": allow,
        }
        error = ""
        try:
            await self.notifier.deliver(notice["to"], notice["text"], about)
        except OrchestratorError as problem:
            error = problem.message + (f"; {problem.hint}" if problem.hint else "")
        return Notified(step=self.step, attempt=self.attempt, to=notice["to"], text=notice["text"], error=error)


def all_delivered(told: Iterable[Notified]) -> None:
    """Raise PolicyDenied where somebody could not be told who must be told first."""
    for notice in told:
        if notice.error:
            raise PolicyDenied(
                f"step `{notice.step}`: the policy demands that `{notice.to}` is told first: {notice.error}"
            )
