"""The question before all others: may this agent take this step at all? Nothing of an author's text is evaluated yet.

It is the request of the step without what only an evaluation can tell: the action says nothing but its name, the
context is empty, and a row limit is still its expression. An engine that knows the question has a second method; one
that does not is asked at the step alone. An engine that decides by policies answers None where these do not have it
(in Rego: no module defines the rule `admit`); what is defined and has no clear answer is a denial.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, runtime_checkable

from orchestrator.grants.scope import Scope
from orchestrator.policy.obligations import Obligations
from orchestrator.policy.types import Decision, PolicyEngine, PolicyRequest


@runtime_checkable
class AdmittingEngine(Protocol):
    """A policy engine that can say no before anything is evaluated."""

    async def admit(self, request: PolicyRequest) -> Decision | None:
        """Answer what `before_evaluation` made; None: the policies do not have this question."""
        ...


async def admission(engine: PolicyEngine, request: PolicyRequest) -> Decision | None:
    """What the engine says to a request of `before_evaluation`; None where it does not have this question.

    Nobody is there yet to meet an obligation: an answer that has one is a denial.
    """
    decision = await engine.admit(request) if isinstance(engine, AdmittingEngine) else None
    if decision is None or not decision.allow or decision.obligations == Obligations():
        return decision
    reason = "the policy demands an obligation before anything is decided; `decision` may do that"
    return replace(decision, allow=False, reasons=(reason,))


def before_evaluation(request: PolicyRequest, scopes: Sequence[Scope]) -> PolicyRequest:
    """The request without anything that was evaluated. `scopes` are the grants as they are declared."""
    return replace(request, context={}, action_view={}, grants=scopes)
