"""A task as it was opened: what never changes of it, and the run that a call of one of its tools is."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from orchestrator.actions.handover import Recipient
from orchestrator.agents.authentication import Caller
from orchestrator.errors import NotAsRecorded, UnknownTask
from orchestrator.grants.wish import NO_WISH, Wish
from orchestrator.jsontypes import JsonObject
from orchestrator.ledger.reading.queries import TRIGGER_CALL
from orchestrator.ledger.task_events import TaskOpened
from orchestrator.ledger.types import CallLimits, EventRecord, LedgerReader
from orchestrator.runs.calls import Call
from orchestrator.runs.recorded_workflow import recorded_workflow
from orchestrator.runs.types import RunRequest, Services
from orchestrator.workflow.inputs import bind_inputs
from orchestrator.workflow.loader import LoadedWorkflow
from orchestrator.workflow.models.tools import Tool
from orchestrator.workflow.models.workflow import Workflow

ID = re.compile(r"[a-z]+_[A-Za-z0-9]{1,64}")
"""What the ids of tasks and leases look like: nothing else is looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedTask:
    """What the first event of a task says. `caller` is how the agent was known; `reason` why it was opened."""

    task_id: str
    loaded: LoadedWorkflow
    agent: str
    inputs: JsonObject
    context: JsonObject
    opened_at: datetime
    deadline: datetime
    caller: JsonObject
    reason: str

    @property
    def workflow(self) -> Workflow:
        """The file that declares its type."""
        return self.loaded.workflow

    @property
    def on_behalf_of(self) -> str:
        """For whom the agent acts; empty where it acts for itself."""
        return str(self.caller.get("on_behalf_of", ""))

    def is_of(self, caller: Caller) -> bool:
        """Whether it was opened by this agent, on behalf of the same."""
        return (self.agent, self.on_behalf_of) == (caller.agent, caller.on_behalf_of)

    def request(
        self,
        run_id: str,
        tool_name: str,
        arguments: JsonObject,
        caller: JsonObject,
        *,
        now: datetime,
        of_agent: int | None = None,
        recipient: Recipient | None = None,
        wish: Wish = NO_WISH,
    ) -> RunRequest:
        """The run that a call is. `arguments` are bound; it ends with the task at the latest.

        `of_agent` is how many calls the agent may have open over all its tasks.
        """
        tool = self.workflow.tools[tool_name]
        left = max(1, math.ceil((self.deadline - now).total_seconds()))
        call = Call(
            task=self.task_id,
            tool=tool_name,
            arguments=arguments,
            context=self.context,
            caller=caller,
            on_behalf_of=self.on_behalf_of,
            until=self.deadline,
            limits=CallLimits(tool.max_calls, tool.max_open, of_agent),
            recipient=recipient,
            wish=wish,
        )
        return RunRequest(
            run_id=run_id,
            loaded=replace(self.loaded, workflow=_one_step(self.workflow, tool_name, tool, self.agent, left)),
            inputs=bind_inputs(self.workflow, self.inputs),
            trigger=TRIGGER_CALL,
            reason=self.reason,
            call=call,
        )


def _one_step(workflow: Workflow, name: str, tool: Tool, agent: str, seconds: int) -> Workflow:
    """The workflow of which the call is the only step; its context is bound already."""
    only = {"steps": {name: tool.step}, "tools": {}, "task": None, "context": {}}
    return workflow.model_copy(update={**only, "agent": agent, "timeout": seconds})


def caller_on_record(caller: Caller, address: str) -> JsonObject:
    """How the agent was known, for the ledger. `address` is where the request came from."""
    return {
        "issuer": caller.issuer,
        "subject": caller.subject,
        "actor": caller.actor,
        "on_behalf_of": caller.on_behalf_of,
        "address": address,
    }


def opened_task(services: Services, task_id: str) -> OpenedTask:
    """The task by its first event, as recorded. Raises UnknownTask, NotAsRecorded, and LedgerError."""
    first = _first_event(services.reader, task_id)
    data = first.data
    loaded = recorded_workflow(
        services.heartbeat.store,
        str(data["digest"]),
        str(data["workflow"]),
        directory=str(data.get("directory", "")),
    )
    inputs, context, caller = data["inputs"], data["context"], data["caller"]
    if not (isinstance(inputs, Mapping) and isinstance(context, Mapping) and isinstance(caller, Mapping)):
        raise NotAsRecorded(f"the first event of {task_id} is none of a task")
    return OpenedTask(
        task_id=task_id,
        loaded=loaded,
        agent=str(data["agent"]),
        inputs=inputs,
        context=context,
        opened_at=first.time,
        deadline=datetime.fromisoformat(str(data["deadline"])),
        caller=caller,
        reason=str(data["reason"]),
    )


def _first_event(reader: LedgerReader, task_id: str) -> EventRecord:
    if not ID.fullmatch(task_id) or reader.task(task_id) is None:
        raise unknown(task_id)
    if not reader.examine(task_id).whole:
        raise NotAsRecorded(
            "what the ledger shows of the task is not what its history says",
            hint=f"`orchestrator runs verify {task_id}` tells what was changed",
        )
    return reader.events(task_id, kind=TaskOpened.kind)[0]


def unknown(task_id: str) -> UnknownTask:
    """There is none for whoever asks: whether another agent has it is not for them to know."""
    return UnknownTask(f"there is no task {task_id[:40]} of yours", hint="open one")
