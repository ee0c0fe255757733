"""The task that an address stands for: the open one of the caller with exactly these inputs, whoever has opened it.

Nothing is remembered here: any process finds it in the ledger, so that no session is needed (MCP of 2026-07-28).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

from orchestrator.agents.authentication import Caller
from orchestrator.errors import UnknownTask
from orchestrator.ledger.states import TaskState
from orchestrator.tasks.desk import TaskDesk
from orchestrator.tasks.opened import OpenedTask
from orchestrator.workflow.loader import LoadedWorkflow

STDIO = "stdio"
"""Where calls over standard input come from, in the ledger."""

_SESSION = " (session)"
"""Behind the address of whoever has opened a task that is a session's own."""

_MOST = 10_000
"""Open tasks of an agent that are looked at."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Who wants which task. `inputs` are bound."""

    caller: Caller
    loaded: LoadedWorkflow
    inputs: Mapping[str, Any]
    address: str

    @property
    def name(self) -> str:
        """The same for the same task of the same caller."""
        who = (self.caller.agent, self.caller.on_behalf_of)
        return json.dumps([*who, self.loaded.workflow.name, dict(self.inputs)], sort_keys=True)


@dataclass(slots=True)
class Handles:
    """Finds tasks, and opens them. Belongs to one event loop."""

    desk: TaskDesk
    _turns: WeakValueDictionary[str, asyncio.Lock] = field(default_factory=WeakValueDictionary)

    async def found(self, wanted: Wanted, *, ended: str = "") -> OpenedTask | None:
        """The oldest that is open, but not one that has `ended`. Raises LedgerError."""
        reader, now = self.desk.services.reader, self.desk.services.clock.now()
        agent = wanted.caller.agent
        records = await asyncio.to_thread(lambda: reader.tasks(agent=agent, state=TaskState.OPEN, limit=_MOST))
        for record in sorted(records, key=lambda each: (each.opened_at, each.task_id)):
            same = (record.workflow, record.digest) == (wanted.loaded.workflow.name, wanted.loaded.digest)
            if same and record.inputs == wanted.inputs and record.deadline > now and record.task_id != ended:
                try:
                    opened = await self.desk.task(wanted.caller, record.task_id)
                except UnknownTask:  # on behalf of somebody else
                    continue
                if not _is_its_own(opened):
                    return opened
        return None

    async def opened(self, wanted: Wanted, *, ended: str = "") -> OpenedTask:
        """It, opened where there is none. Raises what opening a task raises."""
        turn = self._turns.setdefault(wanted.name, asyncio.Lock())
        async with turn:
            if (found := await self.found(wanted, ended=ended)) is not None:
                return found
            mine = await self._open(wanted, wanted.address)
            first = await self.found(wanted, ended=ended)  # another process may have been as quick
        if first is None or first.task_id == mine.task_id:
            return mine
        await self.desk.close(wanted.caller, mine.task_id, "it was opened twice at the same time")
        return first

    async def of_session(self, wanted: Wanted) -> OpenedTask:
        """Another one, which is not found by its address. Raises what opening a task raises."""
        return await self._open(wanted, wanted.address + _SESSION)

    async def _open(self, wanted: Wanted, address: str) -> OpenedTask:
        return await self.desk.open(wanted.caller, wanted.loaded.workflow.name, dict(wanted.inputs), address=address)


def _is_its_own(opened: OpenedTask) -> bool:
    """Whether it belongs to a session or a process, and ends with that."""
    address = str(opened.caller.get("address", ""))
    return address == STDIO or address.endswith(_SESSION)
