"""The engine that needs nothing beside the ledger."""

from __future__ import annotations

from orchestrator.ledger.states import StepState
from orchestrator.runs.engines.types import Walk


class LocalEngine:
    """Walks in this process; a run is gone on with from the ledger alone."""

    async def drive(self, walk: Walk) -> dict[str, StepState]:
        """Walk to the end."""
        return await walk.go(walk.call)

    async def settle(self) -> None:
        """Nothing is recorded that could differ from the ledger."""
