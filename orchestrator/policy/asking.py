"""Asking the policy about what is planned: the questions of a run, in their order, and none that it would not ask."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.policy.admission import admission, before_evaluation
from orchestrator.policy.types import Decision, PolicyEngine, PolicyRequest


async def decisions(engine: PolicyEngine, step: PolicyRequest, items: Sequence[PolicyRequest]) -> Sequence[Decision]:
    """What it says to a step, or to each of its items where these are known; only one where it may not be looked at."""
    if not items:
        return [await _decision(engine, step)]
    admitted = await admission(engine, before_evaluation(step, step.grants))
    if admitted is not None and not admitted.allow:
        return [admitted]
    return [await _decision(engine, item) for item in items]


async def _decision(engine: PolicyEngine, request: PolicyRequest) -> Decision:
    admitted = await admission(engine, before_evaluation(request, request.grants))
    return await engine.decide(request) if admitted is None or admitted.allow else admitted
