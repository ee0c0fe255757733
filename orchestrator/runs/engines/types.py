"""What an engine is given, and what is asked of it.

An engine never decides anything about a run. Which steps are over, which fence is valid and how the run
ended is in the ledger; whatever else an engine keeps is a record beside it that may be thrown away.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from orchestrator.ledger.states import StepState
from orchestrator.runs.graph_walk import CallStep, Graph, Skip, drive

EngineName = Literal["local", "dbos"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """One run under one fence, ready to be walked. The fields from `graph` on are those of `drive`."""

    run_id: str
    fence: int
    cancel: Callable[[str], None]
    """Ends the run with this reason, for an engine that others can ask to cancel one."""
    graph: Graph
    call: CallStep
    skip: Skip
    parallel: int
    grace: float = 30.0
    already: Mapping[str, StepState] = field(default_factory=dict)

    async def go(self, call: CallStep) -> dict[str, StepState]:
        """Walk the graph; `call` carries out one step and leads to `self.call`. Raises what `drive` raises."""
        return await drive(self.graph, call, self.skip, parallel=self.parallel, already=self.already, grace=self.grace)

    async def abandon(self) -> None:
        """Record of every step that it will not run, where the walk cannot even begin. Raises LedgerError."""
        for step in self.graph.dependencies:
            if step not in self.already:
                await self.skip(step, StepState.CANCELLED, "the run was cancelled")


class Engine(Protocol):
    """How the runs of this process are driven."""

    async def drive(self, walk: Walk) -> dict[str, StepState]:
        """Walk to the end, once, and return how each step ended.

        Raises CancelledError if the caller is cancelled, after every running step has cleaned up, and
        LedgerError where the engine cannot go on.
        """
        ...

    async def settle(self) -> None:
        """Bring what the engine has recorded of other processes' runs in line with the ledger. Raises nothing."""
        ...
